"""Gives pages of a mapped file back to the system, so that reading a large file does not count as using memory.

What lies in a file mapping (a checkpoint, a weight pool, the scratch file of an export) is read again when it is
touched, mostly from the system's cache. Plain C library calls: no torch, no numpy.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from pathlib import Path

#: How much a loop over a large mapping may touch before it gives pages back.
CHUNK_BYTES = 64 << 20


def drop_pages(address: int, length: int) -> None:
    """Forget the pages that hold `length` bytes from `address`.

    Only for mappings of files: shared ones (written data stays, in the system's cache), or private ones that nobody
    has written to. Private memory would lose its content. Does nothing where the C library has no madvise.
    """
    libc = _load_libc()
    if libc is not None and length > 0:
        start = address - address % mmap.PAGESIZE
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + length - start), mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Give freed heap back to the system (glibc keeps it otherwise)."""
    libc = _load_libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def list_file_mappings(folder: Path | None = None) -> list[tuple[int, int]]:
    """Start and end address of every part of this process's memory that is a mapped file; empty where unknown.

    Args:
        folder: only of files in it.
    """
    try:
        with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as maps:
            parts = [line.rstrip("\n").split(maxsplit=5) for line in maps]
    except OSError:
        return []
    mapped = [p for p in parts if p[4] != "0"]  # inode 0: private memory, heap and stack
    if folder is not None:
        prefix = f"{folder.resolve()}/"
        mapped = [p for p in mapped if len(p) > 5 and p[5].startswith(prefix)]
    return [(int(a, 16), int(b, 16)) for p in mapped for a, b in [p[0].split("-")]]


@functools.cache
def _load_libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.madvise  # noqa: B018  # asked for here: a system without it is served, only with more memory
    except (OSError, AttributeError):
        return None
    return libc
