"""What the operating system refuses when files are written, in words: the one place that knows its error numbers.

Standard library only: an edge device writes build reports too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from specs.errors import OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit of the shell's, `ulimit -f`
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.EBUSY, errno.EXDEV,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
_BROKEN = (errno.EIO, errno.ESTALE)
_NO_TEMPORARY = "No usable temporary directory"  # what `tempfile` says, as a FileNotFoundError


def word_os_error(error: OSError, path: Path | None = None) -> OutputError | None:
    """A machine's limit as a message for its user; None for what must be a bug.

    Args:
        path: what was being made. The error's own file, which may be a temporary one, is named when this is absent.
    """
    where = str(path or error.filename or "") or None
    said = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        free = _measure_free_bytes(path or Path(os.fsdecode(error.filename or ".")))
        return OutputError(
            "the disk is full; nothing was left half-written",
            where=where,
            got=f"{said}, {free / 1e6:.0f} MB free",
            fix="free some space, or write to another disk",
        )
    if error.errno in _DENIED:
        return OutputError(
            "access was denied; nothing was left half-written",
            where=where,
            got=said,
            fix="change its permissions, or choose a folder of yours",
        )
    if error.errno in _IN_THE_WAY:
        return OutputError(
            "this path cannot be used", where=where, got=said, fix="choose another one, below a folder of yours"
        )
    if error.errno in _BROKEN:
        return OutputError(
            "the disk reported an error; nothing was left half-written",
            where=where,
            got=said,
            fix="look at the disk's health (dmesg), or write to another disk",
        )
    if _NO_TEMPORARY in str(error):
        return OutputError(
            "there is no folder for temporary files that can be written",
            got=said if error.errno is None else str(error),
            fix="free some space in /tmp, or set TMPDIR to a folder of yours",
        )
    return None


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Word the operating system's refusals to make `path` as OutputError; what must be a bug passes as it is."""
    try:
        yield
    except OSError as error:
        worded = word_os_error(error, path)
        if worded is None:
            raise
        raise worded from error


def _measure_free_bytes(path: Path) -> int:
    path = path.absolute()
    while not os.path.exists(path):  # noqa: PTH110 - False for a name too long, where pathlib raises
        path = path.parent
    return shutil.disk_usage(path).free
