"""A bundle appears whole or not at all: it is written beside its place and renamed into it.

A crash, Ctrl-C, a full disk or a failed check leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from specs.bundle import MANIFEST_NAME
from specs.errors import OutputError


@contextlib.contextmanager
def stage_bundle(output: Path) -> Iterator[Path]:
    """Yield an empty folder on the same file system; when the block ends without an error, it becomes `output`.

    An existing bundle at `output` is replaced; anything else there is refused.

    Raises:
        OutputError: `output` is something that is not a bundle, cannot be written, or the disk is full.
    """
    output = output.absolute()
    _refuse_other_things(output)
    with translate_write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        staged.chmod(0o755)
        with translate_write_errors(output):
            yield staged
            _swap(staged, output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def translate_write_errors(output: Path) -> Iterator[None]:
    """Word the operating system's refusals to write as OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _measure_free_bytes(output)
            raise OutputError(
                "the disk is full; nothing was left behind",
                where=str(output),
                got=f"{free / 1e6:.0f} MB free",
                fix="free some space, or choose another folder with -o",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OutputError(
                "the folder cannot be written",
                where=str(output),
                got=os.strerror(error.errno),
                fix="choose another folder with -o",
            ) from error
        raise


def _refuse_other_things(output: Path) -> None:
    if not os.path.lexists(output):
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST_NAME).is_file()):
        raise OutputError(
            "the output exists and is not a bundle",
            where=str(output),
            allowed="a new path, an empty folder, or a bundle to replace",
            fix="choose another name with -o, or remove it yourself",
        )


def _swap(staged: Path, output: Path) -> None:
    if not output.exists():
        staged.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
    output.rename(old / "bundle")
    try:
        staged.rename(output)
    except BaseException:
        (old / "bundle").rename(output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _measure_free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
