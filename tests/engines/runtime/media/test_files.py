"""A file's bytes, up to a limit: one more is refused, and so is what no system opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.runtime.media import files
from engines.runtime.media.files import read_bytes
from specs.errors import InputError


def refuse(path: str | Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_bytes(path, what="sound")
    return caught.value


def test_the_last_byte_of_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 5)
    path = tmp_path / "x.wav"
    for data in (b"", b"1", b"12345"):
        path.write_bytes(data)
        assert read_bytes(path, what="sound") == data
    path.write_bytes(b"123456")
    error = refuse(path)
    assert (error.problem, error.got) == ("the sound is too large to be read at once", "over 5 bytes")


def test_what_the_system_said_is_told(tmp_path: Path) -> None:
    assert refuse(tmp_path / "none.wav").got == "No such file or directory"
    assert refuse(tmp_path).got == "Is a directory"
    assert refuse("a\0b.wav").got == "embedded null byte"
    assert refuse(tmp_path / "none.wav").problem == "the sound cannot be read"


def test_no_memory_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"1")
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 62)  # Python asks for so many at once
    assert refuse(path).problem == "the sound does not fit into memory"
