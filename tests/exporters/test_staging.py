"""A bundle appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from exporters.staging import stage_bundle
from specs.bundle import MANIFEST_NAME
from specs.errors import OutputError


def _write_bundle(folder: Path, text: str) -> None:
    with stage_bundle(folder) as staged:
        (staged / MANIFEST_NAME).write_text(text)


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "x.bundle"
    with stage_bundle(output) as staged:
        (staged / MANIFEST_NAME).write_text("{}")
        assert not output.exists()
    assert [p.name for p in output.parent.iterdir()] == ["x.bundle"]
    assert (output / MANIFEST_NAME).read_text() == "{}"


@pytest.mark.parametrize("crash", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_crash_leaves_what_was_there(tmp_path: Path, crash: type[BaseException]) -> None:
    output = tmp_path / "x.bundle"
    _write_bundle(output, "old")
    with pytest.raises(crash), stage_bundle(output) as staged:
        (staged / MANIFEST_NAME).write_text("new")
        raise crash
    assert (output / MANIFEST_NAME).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bundle"]


@pytest.mark.parametrize("number", range(4))
def test_a_signal_right_after_a_folder_is_made(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parents, the staged folder and the one for what was there before."""
    made: list[Path] = []
    mkdir = Path.mkdir

    def make(path: Path, **options: bool) -> None:
        mkdir(path, **options)
        made.append(path)
        if len(made) == number + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", make)
    with pytest.raises(KeyboardInterrupt):
        _write_bundle(tmp_path / "a" / "b" / "x.bundle", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "x.bundle"
    _write_bundle(output, "old")
    _write_bundle(output, "new")
    assert (output / MANIFEST_NAME).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bundle"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_a_bundle_comes_back_when_its_successor_cannot_take_its_place(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.bundle"
    _write_bundle(output, "old")
    rename = Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(number, os.strerror(number))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OutputError):
        _write_bundle(output, "new")
    assert (output / MANIFEST_NAME).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bundle"]


def test_another_export_puts_its_bundle_there_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it does so: the one that ends last stays, and nothing of the others is left."""
    output = tmp_path / "x.bundle"
    _write_bundle(output, "old")
    rename, others = Path.rename, iter(["first", "second"])

    def rename_late(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial") and (other := next(others, None)):
            output.mkdir()
            (output / MANIFEST_NAME).write_text(other)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    _write_bundle(output, "new")
    assert (output / MANIFEST_NAME).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bundle"]


def test_parents_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError), stage_bundle(tmp_path / "a" / "b" / "x.bundle"):  # noqa: PT011
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_other_things_are_never_replaced(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "precious"
    if kind == "file":
        output.write_text("mine")
    elif kind == "folder":
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
    else:
        output.symlink_to(tmp_path / "nowhere")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match="the output exists and is not a bundle"), stage_bundle(output):
        raise AssertionError("not reached")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; nothing was left half-written"),
        (errno.EACCES, "access was denied"),
        (errno.EIO, "the disk reported an error"),
    ],
)
def test_refusals_of_the_system_are_worded(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(OutputError, match=words) as caught, stage_bundle(tmp_path / "x.bundle"):
        raise OSError(number, os.strerror(number))
    assert "fix:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_worded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="this path cannot be used"), stage_bundle(tmp_path / "file" / "x.bundle"):
        raise AssertionError("not reached")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that only the kernel fills")
@pytest.mark.parametrize("place", ["/proc/x.bundle", "/proc/new/x.bundle"])
def test_where_no_folder_can_be_made(place: str) -> None:
    with pytest.raises(OutputError, match="no folder can be made here") as caught, stage_bundle(Path(place)):
        raise AssertionError
    assert caught.value.where == "/proc"
