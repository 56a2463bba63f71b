"""What a model made, as files: pictures and films as PNG, sounds as WAV, meshes as PLY, by the standard library.

Films also as GIF, by Pillow: 256 colours a frame, and times in hundredths of a second.
"""

from __future__ import annotations

import importlib
import io
import struct
import wave
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.media.png import SIGNATURE
from engines.runtime.request import Film, Medium, Mesh, Picture, Sound
from specs.errors import MissingDependency

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

#: What a file of a kind of medium may be called; the first is its usual one.
SUFFIXES: dict[type, tuple[str, ...]] = {
    Picture: (".png",),
    Film: (".png", ".gif"),
    Sound: (".wav",),
    Mesh: (".ply",),
}

_FULL_SCALE = 32767  # of 16-bit samples
_LEAST_GIF_MS = 20  # many viewers show what is faster ten times slower


def encode_medium(medium: Medium, suffix: str = "") -> bytes:
    """The file's bytes; `suffix` is one of SUFFIXES, the usual one when absent.

    Raises:
        MissingDependency: a .gif, and Pillow is not installed.
    """
    if isinstance(medium, Picture):
        return encode_png(medium)
    if isinstance(medium, Sound):
        return encode_wav(medium)
    if isinstance(medium, Mesh):
        return encode_ply(medium)
    return encode_gif(medium) if suffix == ".gif" else encode_animated_png(medium)


def encode_png(picture: Picture) -> bytes:
    """8-bit RGB, without loss beyond the rounding to 8 bits; what is outside [0, 1] is clipped."""
    height, width, _ = picture.pixels.shape
    chunks = ((b"IHDR", _make_header(width, height)), (b"IDAT", _compress(picture.pixels)), (b"IEND", b""))
    return SIGNATURE + b"".join(_make_chunk(name, data) for name, data in chunks)


def encode_animated_png(film: Film) -> bytes:
    """A PNG whose further frames follow in chunks of their own (PNG 3rd edition): browsers play it, others see one."""
    count, height, width, _ = film.frames.shape
    chunks = [(b"IHDR", _make_header(width, height)), (b"acTL", struct.pack(">II", count, 0))]
    sequence = 0
    for index, frame in enumerate(film.frames):
        delay = (round(1000 / film.frames_per_second), 1000)
        chunks.append((b"fcTL", struct.pack(">IIIIIHHBB", sequence, width, height, 0, 0, *delay, 0, 0)))
        sequence += 1
        data = _compress(frame)
        if index == 0:
            chunks.append((b"IDAT", data))
        else:
            chunks.append((b"fdAT", struct.pack(">I", sequence) + data))
            sequence += 1
    chunks.append((b"IEND", b""))
    return SIGNATURE + b"".join(_make_chunk(name, data) for name, data in chunks)


def import_gif_writer() -> Any:
    """Pillow's module; raises MissingDependency where it is not installed."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        raise MissingDependency(
            "a .gif needs the package 'pillow', which is not installed",
            allowed=", ".join(SUFFIXES[Film]),
            fix="pip install pillow, or write an animated .png",
        ) from None


def encode_gif(film: Film) -> bytes:
    """An endless GIF: each frame has the 256 colours that serve it best; what is outside [0, 1] is clipped."""
    pillow = import_gif_writer()
    first, *rest = [pillow.fromarray(frame) for frame in _to_levels(film.frames)]
    stream = io.BytesIO()
    delay_ms = max(_LEAST_GIF_MS, round(1000 / film.frames_per_second))
    first.save(stream, format="GIF", save_all=True, append_images=rest, duration=delay_ms, loop=0)
    return stream.getvalue()


def encode_ply(mesh: Mesh) -> bytes:
    """Binary PLY with a colour a vertex, as Blender and MeshLab read it."""
    vertex = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
    face = np.dtype([("count", "u1"), ("vertices", "<i4", 3)])
    vertices, faces = np.empty(len(mesh.vertices), vertex), np.empty(len(mesh.faces), face)
    vertices["position"], vertices["colour"] = mesh.vertices, _to_levels(mesh.colours)
    faces["count"], faces["vertices"] = 3, mesh.faces
    properties = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {channel}" for channel in ("red", "green", "blue")
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *properties]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return "".join(f"{line}\n" for line in header).encode() + vertices.tobytes() + faces.tobytes()


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


def _to_levels(shares: Array) -> Array:
    levels: Array = np.rint(np.clip(shares, 0.0, 1.0) * 255).astype(np.uint8)
    return levels


def _make_header(width: int, height: int) -> bytes:
    return struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def _compress(pixels: Array) -> bytes:
    levels = _to_levels(pixels)
    rows = np.concatenate([np.zeros((len(levels), 1), np.uint8), levels.reshape(len(levels), -1)], axis=1)  # filter 0
    return zlib.compress(rows.tobytes(), 6)


def _make_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
