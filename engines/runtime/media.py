"""Pictures and sounds that a model made, as files: PNG and WAV, by the standard library."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.png import SIGNATURE
from engines.runtime.request import Picture, Sound

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_FULL_SCALE = 32767  # of 16-bit samples


def encode_png(picture: Picture) -> bytes:
    """8-bit RGB, without loss beyond the rounding to 8 bits; what is outside [0, 1] is clipped."""
    levels = np.rint(np.clip(picture.pixels, 0.0, 1.0) * 255).astype(np.uint8)
    height, width, _ = levels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels.reshape(height, -1)], axis=1)  # filter 0
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return SIGNATURE + b"".join(_make_chunk(name, data) for name, data in chunks)


def encode_wav(sound: Sound) -> bytes:
    """16-bit PCM; what is outside [-1, 1] is clipped."""
    levels: Array = np.rint(np.clip(sound.samples, -1.0, 1.0) * _FULL_SCALE).astype("<i2")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(2)
        file.setframerate(sound.sample_rate_hz)
        file.writeframes(np.ascontiguousarray(levels.T).tobytes())
    return stream.getvalue()


def _make_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
