"""Keeps an export's memory near the largest tensor instead of the whole model.

Parameters live in a memory-mapped scratch file (`specs.handlers` puts them there). Between two steps that need them,
`page_out` lets the system take their pages back; touching them reads them again, mostly from its cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator

import torch
from torch import nn

_BREATH_BYTES = 64 << 20


def page_out(module: nn.Module) -> None:
    """Drop the parameters' pages from this process, and give freed heap back to the system.

    Only for parameters in shared file mappings: private memory would lose its content. Does nothing where the C
    library has no madvise (the export is right there too, only larger).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for start, length in _list_mapped_storages(module):
            page = start - start % mmap.PAGESIZE
            libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(length + start - page), mmap.MADV_DONTNEED)
        libc.malloc_trim(0)  # glibc only


@contextlib.contextmanager
def paged(module: nn.Module) -> Iterator[None]:
    """Inside, a forward of `module` pages its parameters out again as it goes, every _BREATH_BYTES."""
    touched = 0

    def breathe(layer: nn.Module, *_: object) -> None:
        nonlocal touched
        touched += sum(p.nbytes for p in layer.parameters(recurse=False))
        if touched > _BREATH_BYTES:
            touched = 0
            page_out(module)

    handles = [layer.register_forward_hook(breathe) for layer in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def release(module: nn.Module) -> None:
    """Give up the parameters: they are in the bundle now, and everything after works from there.

    Dropping the module would not do: torch's exporter and onnxscript's rewriter keep references to the last model.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0)
    page_out(module)


def _list_mapped_storages(module: nn.Module) -> set[tuple[int, int]]:
    """Address and length of each distinct storage that is a shared mapping of a file."""
    storages = (parameter.untyped_storage() for parameter in module.parameters())
    return {(storage.data_ptr(), storage.nbytes()) for storage in storages if storage.filename}
