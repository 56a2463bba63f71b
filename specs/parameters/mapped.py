"""Tensors that lie in mapped files, read piece by piece, and their pages given back.

A parameter that is mapped costs address space; nothing here holds more than CHUNK_BYTES of a tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from specs.system.pages import CHUNK_BYTES, drop_pages, list_file_mappings


def lies_in_file(value: Tensor, mappings: Sequence[tuple[int, int]] | None = None) -> bool:
    """Whether a tensor's bytes are those of a mapped file, whose pages can be dropped.

    Args:
        mappings: what `list_file_mappings` said, for a caller who asks for many tensors; a call takes milliseconds.
    """
    start, end = value.data_ptr(), value.data_ptr() + value.nbytes
    return any(first <= start and end <= last for first, last in mappings or list_file_mappings())


def drop_tensor(value: Tensor) -> None:
    """Give back the pages of a tensor that lies in a file mapping, and only of such a one."""
    drop_pages(value.data_ptr(), value.nbytes)


def split_tensor(value: Tensor, *, elements: int | None = None) -> Iterator[Tensor]:
    """Flat views of a contiguous tensor, one after the other, of at most CHUNK_BYTES (or `elements`) each."""
    pieces = value.detach().view(-1).split(elements or CHUNK_BYTES // value.itemsize)  # type: ignore[no-untyped-call]
    yield from pieces
