"""A bundle appears whole or not at all: it is written beside its place and renamed into it.

A crash, Ctrl-C, a full disk or a failed check leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from specs.bundle import MANIFEST_NAME
from specs.errors import OutputError
from specs.system.disk import translate_os_errors


@contextlib.contextmanager
def stage_bundle(output: Path) -> Iterator[Path]:
    """Yield an empty folder on the same file system; when the block ends without an error, it becomes `output`.

    An existing bundle at `output` is replaced; anything else there is refused. Two exports to the same place each make
    their own folder, and the one that ends last stays.

    Raises:
        OutputError: `output` is something that is not a bundle, cannot be written, or the disk is full.
    """
    output = output.absolute()
    with contextlib.ExitStack() as undo, translate_os_errors(output):
        _refuse_other_things(output)
        for folder in reversed([parent for parent in output.parents if not parent.exists()]):
            undo.callback(_remove_empty, folder)  # before it is made: a signal may fall between the two
            _make_folder(folder, exist_ok=True)
        staged, old = _name_sibling(output, "partial"), _name_sibling(output, "old")
        for folder in (old, staged):
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        _make_folder(staged)
        yield staged
        _swap(staged, output, old)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # the bundle is in it, or something else by now
        folder.rmdir()


def _name_sibling(output: Path, kind: str) -> Path:
    """A place beside `output` for a folder that no other export has."""
    return output.with_name(f".{output.name[:100]}.{secrets.token_hex(4)}.{kind}")


def _make_folder(folder: Path, *, exist_ok: bool = False) -> None:
    """With any new folder's permissions (`tempfile` would make it private)."""
    try:
        folder.mkdir(exist_ok=exist_ok)
    except FileNotFoundError:  # its parent went away, or is a file system that only the kernel fills
        raise OutputError(
            "no folder can be made here", where=str(folder.parent), fix="choose another place, below a folder of yours"
        ) from None


def _refuse_other_things(output: Path) -> None:
    """Also a name that no file can have: an OSError now, and not when the work is done."""
    try:
        output.lstat()
    except FileNotFoundError:
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST_NAME).is_file()):
        raise OutputError(
            "the output exists and is not a bundle",
            where=str(output),
            allowed="a new path, an empty folder, or a bundle to replace",
            fix="choose another name with -o, or remove it yourself",
        )


def _swap(staged: Path, output: Path, old: Path) -> None:
    """Put `staged` in the place of what is at `output`, which comes back out of `old` when that fails."""
    _make_folder(old)
    taken = old / "bundle"
    try:
        while not _try_swap(staged, output, taken):
            shutil.rmtree(taken, ignore_errors=True)
    except BaseException:
        if taken.exists() and not output.exists():
            taken.rename(output)
        raise


def _try_swap(staged: Path, output: Path, taken: Path) -> bool:
    """False when another export put a bundle there between the two steps."""
    with contextlib.suppress(FileNotFoundError):
        output.rename(taken)
    try:
        staged.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
