"""numpy's files, .npy and .npz, as strangers hand them over: never unpickled, and refused before they fill the memory.

Whatever is wrong with a file is one `UnreadableArrayError`, whose text is the reason; the caller says whose file it is.
Standard library and numpy: an edge device reads tensors too.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_ZIP_MAGIC = b"PK"
#: What numpy and zipfile raise for damaged bytes: besides their own errors, whatever a header's claims lead to.
_DAMAGED = (
    OSError, ValueError, TypeError, KeyError, OverflowError, EOFError, MemoryError, RecursionError, SyntaxError,
    NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class UnreadableArrayError(ValueError):
    """The file holds no arrays that can be read; says why."""


def read_npy(path: str | Path) -> Array:
    """The array of a .npy file. Mapped first, so that a header that claims more than the file holds is refused.

    Raises:
        UnreadableArrayError: no regular file, damaged, pickled, or larger than the machine's memory.
    """
    with _word_damage():
        _require_regular(path)
        mapped = np.lib.format.open_memmap(path, mode="r")
        _require_memory(mapped.nbytes)
        return np.array(mapped)


def list_npz(path: str | Path) -> tuple[str, ...]:
    """The names of the arrays in a .npz file.

    Raises:
        UnreadableArrayError: no regular file, or no archive.
    """
    with _word_damage(), _open_npz(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def read_npz(path: str | Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """The arrays called `names` of a .npz file, those that it has; all of them by default.

    Raises:
        UnreadableArrayError: no regular file, no archive, damaged, pickled, or larger than the machine's memory.
    """
    with _word_damage(), _open_npz(path) as archive:
        chosen = [
            name
            for name in archive.namelist()
            if name.endswith(".npy") and (names is None or name.removesuffix(".npy") in names)
        ]
        _require_memory(sum(archive.getinfo(name).file_size for name in chosen))
        return {name.removesuffix(".npy"): _read_member(archive, name) for name in chosen}


def _read_member(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(name) as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
        return array


@contextlib.contextmanager
def _open_npz(path: str | Path) -> Iterator[zipfile.ZipFile]:
    _require_regular(path)
    with Path(path).open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise ValueError("this is no archive of named arrays")
        with zipfile.ZipFile(file) as archive:
            yield archive


def _require_regular(path: str | Path) -> None:
    """A pipe or a device might never end."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is a folder" if Path(path).is_dir() else "it is no regular file")


def _require_memory(needed_bytes: int) -> None:
    have_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed_bytes > have_bytes:
        raise ValueError(f"its arrays take {needed_bytes / 1e9:.1f} GB, and this machine has {have_bytes / 1e9:.1f} GB")


@contextlib.contextmanager
def _word_damage() -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        said = (isinstance(error, OSError) and error.strerror) or str(error).split("\n")[0] or type(error).__name__
        raise UnreadableArrayError(said) from None
