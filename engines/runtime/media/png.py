"""PNG decoding on zlib and numpy, for devices without an imaging library.

    chunks -> zlib -> undo row filters -> unpack bits -> palette        (PNG specification, third edition)

Grey, grey+alpha, RGB, RGBA and palettes at 1, 2, 4, 8 and 16 bits (16 keeps the upper 8). Not interlaced files, and
neither gamma nor colour profiles: pixels are handed over as they are stored, as most training pipelines do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 1 << 27  # a file of a few bytes may claim any size
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples a pixel
_GREY, _PALETTE = 0, 3


class NotDecodedHereError(ValueError):
    """The file is sound, as far as was looked, and of a kind that a larger library decodes."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    width: int
    height: int
    depth: int  # bits a sample
    colour: int

    @property
    def samples(self) -> int:
        return _SAMPLES[self.colour]

    @property
    def row_bytes(self) -> int:
        return (self.width * self.samples * self.depth + 7) // 8


def decode_png(data: bytes) -> Array:
    """Pixels as uint8 [height, width, samples]; a palette gives 3 samples.

    Raises:
        NotDecodedHereError: it is interlaced. ValueError: it is damaged, with the reason.
    """
    header, palette, packed = None, None, []
    for name, body in _walk_chunks(data):
        if name == b"IHDR":
            header = _read_header(body)
        elif name == b"PLTE":
            palette = np.frombuffer(body[: len(body) // 3 * 3], np.uint8).reshape(-1, 3)
        elif name == b"IDAT":
            packed.append(body)
    if header is None:
        raise ValueError("the PNG has no header")
    rows = _inflate(b"".join(packed), header)
    pixels = _unpack_samples(_undo_filters(rows, max(1, header.samples * header.depth // 8)), header)
    if header.colour != _PALETTE:
        return pixels
    if palette is None or int(pixels.max()) >= len(palette):
        raise ValueError("the PNG's palette is missing or too short")
    return np.ascontiguousarray(palette[pixels[:, :, 0]])


def _walk_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, name = len(SIGNATURE), b""
    while name != b"IEND":
        if at + 12 > len(data):
            raise ValueError("the PNG is truncated")
        size, name = struct.unpack_from(">I4s", data, at)
        body, check = data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        if len(check) != 4 or struct.unpack(">I", check)[0] != zlib.crc32(body, zlib.crc32(name)):
            raise ValueError("the PNG is truncated or damaged")
        yield name, body
        at += 12 + size


def _read_header(body: bytes) -> _Header:
    if len(body) != 13:
        raise ValueError("the PNG's header is damaged")
    width, height, depth, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", body)
    small = depth in (1, 2, 4) and colour in (_GREY, _PALETTE)
    if colour not in _SAMPLES or not (small or depth == 8 or (depth == 16 and colour != _PALETTE)):
        raise ValueError(f"PNG colour type {colour} with {depth} bits does not exist")
    if interlace or compression or filters:
        raise NotDecodedHereError("interlaced PNG files are not decoded here")
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"the PNG claims {width} x {height} pixels, at most {MAX_PIXELS} are decoded")
    return _Header(width=width, height=height, depth=depth, colour=colour)


def _inflate(packed: bytes, header: _Header) -> Array:
    """Filter byte and samples of every row, uint8 [height, 1 + row_bytes]."""
    size = header.height * (1 + header.row_bytes)
    try:
        raw = zlib.decompressobj().decompress(packed, size)
    except zlib.error as error:
        raise ValueError(f"the PNG is damaged: {error}") from None
    if len(raw) != size:
        raise ValueError("the PNG is truncated")
    return np.frombuffer(raw, np.uint8).reshape(header.height, -1)


def _undo_filters(rows: Array, step: int) -> Array:
    """Bytes as they were before filtering, uint8 [height, row_bytes]; `step` is how far left the left neighbour lies.

    A byte needs its left, upper and upper left neighbours, so bytes of one anti-diagonal are independent and are
    computed together: width + height steps of numpy instead of one of Python a byte. With one column of zeros on the
    left, an anti-diagonal is a slice of the flat picture.
    """
    kinds, height = rows[:, 0], len(rows)
    width = (rows.shape[1] - 1) // step
    if kinds.max(initial=0) > 4:
        raise ValueError(f"the PNG is damaged: filter {kinds.max()}")
    coded = rows[:, 1:].reshape(height, width, step)
    picture = np.zeros((height + 1, width + 1, step), np.int16)
    flat = picture.reshape(-1, step)
    picture[1:, 1:] = coded
    if kinds.any():
        for diagonal in range(width + height - 1):
            top, bottom = max(0, diagonal - width + 1), min(height, diagonal + 1)
            first = (top + 1) * (width + 1) + diagonal - top + 1
            cells = [slice(at, at + (bottom - top - 1) * width + 1, width) for at in (first, first - 1)]
            here, left = flat[cells[0]], flat[cells[1]]
            above = (first - width - 1, first - width - 2)
            up, corner = (flat[at : at + (bottom - top - 1) * width + 1 : width] for at in above)
            here += _predict(kinds[top:bottom, None], left, up, corner)
            here &= 0xFF
    return picture[1:, 1:].astype(np.uint8).reshape(height, -1)


def _predict(kinds: Array, left: Array, up: Array, corner: Array) -> Array:
    """What each row's filter (0 none, 1 left, 2 up, 3 mean, 4 Paeth) adds to its coded bytes."""
    to_left, to_up, to_corner = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    return np.select([kinds == 1, kinds == 2, kinds == 3, kinds == 4], [left, up, (left + up) >> 1, paeth], 0)


def _unpack_samples(rows: Array, header: _Header) -> Array:
    if header.depth == 16:
        rows = rows[:, ::2]
    elif header.depth < 8:
        bits = np.unpackbits(rows, axis=1).reshape(header.height, -1, header.depth)
        rows = np.packbits(bits, axis=2)[:, : header.width, 0] >> (8 - header.depth)
        if header.colour == _GREY:
            rows = rows * np.uint8(255 // ((1 << header.depth) - 1))
    return np.ascontiguousarray(rows.reshape(header.height, header.width, header.samples))
