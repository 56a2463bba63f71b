"""Pictures and sounds that a model made: what is written is what was given, read back by somebody else's reader."""

from __future__ import annotations

import io
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.runtime.media.encode import encode_animated_png, encode_medium, encode_ply, encode_png, encode_wav
from engines.runtime.request import Film, Mesh, Picture, Sound
from metagen_deploy.answer import answer_request
from specs.errors import MissingDependency


def test_png_reads_back() -> None:
    pixels = np.random.default_rng(0).random((5, 7, 3), np.float32)
    pixels[0, 0], pixels[4, 6] = -1.0, 2.0
    read = np.asarray(Image.open(io.BytesIO(encode_png(Picture(pixels=pixels)))))
    assert read.shape == (5, 7, 3)
    assert (read == np.rint(np.clip(pixels, 0, 1) * 255)).all()


def test_wav_reads_back() -> None:
    samples = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 11)).astype(np.float32)
    with wave.open(io.BytesIO(encode_wav(Sound(samples=samples, sample_rate_hz=32000)))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth(), file.getnframes()) == (2, 32000, 2, 11)
        read = np.frombuffer(file.readframes(11), "<i2").reshape(11, 2).T
    assert (read == np.rint(np.clip(samples, -1, 1) * 32767)).all()


def test_animated_png_reads_back() -> None:
    frames = np.random.default_rng(0).random((3, 4, 6, 3), np.float32)
    film: Any = Image.open(io.BytesIO(encode_animated_png(Film(frames=frames, frames_per_second=25))))
    assert film.n_frames == 3
    for index in range(3):
        film.seek(index)
        assert film.info["duration"] == 40
        assert (np.asarray(film.convert("RGB")) == np.rint(frames[index] * 255)).all()


@pytest.mark.parametrize(("rate", "shown_ms"), [(8, 120), (100, 20)])
def test_gif_reads_back(rate: int, shown_ms: int) -> None:
    """Frames of few colours come back as they were; times are hundredths of a second, at least two."""
    colours = np.random.default_rng(0).integers(0, 256, (9, 3))
    frames = (colours[np.random.default_rng(1).integers(0, 9, (3, 4, 6))] / 255).astype(np.float32)
    film: Any = Image.open(io.BytesIO(encode_medium(Film(frames=frames, frames_per_second=rate), ".gif")))
    assert (film.format, film.n_frames, film.info["loop"]) == ("GIF", 3, 0)
    for index in range(3):
        film.seek(index)
        assert film.info["duration"] == shown_ms
        assert (np.asarray(film.convert("RGB")) == np.rint(frames[index] * 255)).all()


def test_a_gif_without_pillow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingDependency, match="pip install pillow, or write an animated .png"):
        answer_request(tmp_path, files=(), inputs={}, prompts=("a",), graph=None, output=tmp_path / "film.GIF")


def test_ply_holds_what_was_given() -> None:
    vertices = np.arange(12, dtype=np.float32).reshape(4, 3)
    faces, colours = np.array([[0, 1, 2], [2, 3, 0]]), np.full((4, 3), 0.2, np.float32)
    data = encode_ply(Mesh(vertices=vertices, faces=faces, colours=colours))
    header, _, body = data.partition(b"end_header\n")
    assert b"element vertex 4\n" in header
    assert b"element face 2\n" in header
    assert len(body) == 4 * 15 + 2 * 13
    assert (np.frombuffer(body[:12], "<f4") == vertices[0]).all()
    assert body[12:15] == bytes([51, 51, 51])
    assert (np.frombuffer(body[61:73], "<i4") == faces[0]).all()
