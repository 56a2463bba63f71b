"""Pictures and sounds that a model made: what is written is what was given, read back by somebody else's reader."""

from __future__ import annotations

import io
import wave

import numpy as np
from PIL import Image

from engines.runtime.media import encode_png, encode_wav
from engines.runtime.request import Picture, Sound


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
