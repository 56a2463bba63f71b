"""Pictures to what a vision graph takes: float32 [1, channels, height, width] in [0, 1].

    file or array -> uint8 or float [H, W, C] -> channels -> antialiased resize -> NCHW

PNG, PPM, PGM and .npy need numpy alone; anything else needs Pillow. Without `steps` the whole picture is stretched to
the graph's size. With them it is treated as the image processor of the model's library treats it: colours over white,
8 bits at every step, Pillow's resize (its own where it is installed, else `resample`, which equals it), a crop.
"""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.media.files import read_bytes
from engines.runtime.media.picture_steps import apply_steps
from engines.runtime.media.png import MAX_PIXELS, SIGNATURE, NotDecodedHereError, decode_png
from specs.arrays import read_npy
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_NATIVE = "PNG, PPM, PGM or .npy"
_NPY_MAGIC = b"\x93NUMPY"
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's convert("L")
_STREAM = re.compile(r" <_io\.BytesIO object at 0x[0-9a-f]+>")  # what Pillow calls bytes that it was handed
_PNM_HEADER = re.compile(rb"P([56])\s(?:\s|#[^\n]*\n)*(\d+)\s(?:\s|#[^\n]*\n)*(\d+)\s(?:\s|#[^\n]*\n)*(\d+)\s")


def load_image(
    source: str | Path | Array, *, height: int, width: int, channels: int, steps: Mapping[str, Any] | None = None
) -> Array:
    """A picture as float32 [1, channels, height, width] in [0, 1].

    Args:
        source: a file, or an array [H, W] or [H, W, C]: uint8, or floating point in [0, 1].
        steps: a manifest's `pipeline.image.steps`: `resize` (stretch, shortest_edge, none), `size`, `resample`, `crop`.

    Raises:
        InputError: no such file, not a picture, values outside [0, 1], or another size than the graph's after `steps`.
    """
    where = "array" if isinstance(source, np.ndarray) else str(source)
    pixels = source if isinstance(source, np.ndarray) else _read_file(Path(source))
    pixels = _to_unit_range(pixels, where)
    if steps is None:
        pixels = resize_image(_to_channels(pixels, channels, where), height=height, width=width)
    else:
        bytes_HWC = apply_steps(_to_opaque_bytes(pixels, channels, where), steps)
        if bytes_HWC.shape[:2] != (height, width):
            raise InputError(
                "the picture does not become one of the size that the model takes",
                where=where,
                got=f"{bytes_HWC.shape[0]} by {bytes_HWC.shape[1]} pixels after resizing, as the model's files say",
                allowed=f"{height} by {width}",
                fix="hand over a picture with these proportions",
            )
        pixels = (bytes_HWC.astype(np.float64) * (1 / 255)).astype(np.float32)  # rounded as the libraries do
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def load_pixels(source: str | Path | Array, *, channels: int, on_white: bool = False) -> Array:
    """A picture as raw pixels, uint8 [1, height, width, channels], of its own size: for graphs that resize themselves.

    Args:
        source: as for `load_image`.
        on_white: what is transparent becomes white, as `load_image` with `steps` has it; else alpha is dropped.

    Raises:
        InputError: no such file, not a picture, or values outside [0, 1].
    """
    where = "array" if isinstance(source, np.ndarray) else str(source)
    pixels = _to_unit_range(source if isinstance(source, np.ndarray) else _read_file(Path(source)), where)
    if on_white:
        return np.ascontiguousarray(_to_opaque_bytes(pixels, channels, where)[None])
    bytes_HWC: Array = np.rint(_to_channels(pixels, channels, where) * 255).astype(np.uint8)
    return np.ascontiguousarray(bytes_HWC[None])


def _to_opaque_bytes(pixels: Array, channels: int, where: str) -> Array:
    """[0, 1] -> uint8 [H, W, channels], over white."""
    bytes_HWC = (pixels.astype(np.float64) * 255 + 1e-6).astype(np.uint8)  # a hair: float32 n / 255 is n again
    opaque: Array = _to_channels(_put_on_white(bytes_HWC), channels, where).astype(np.uint8)
    return opaque


def _put_on_white(pixels: Array) -> Array:
    """uint8 with alpha -> without, over white and rounded as Pillow's alpha_composite does."""
    if pixels.ndim == 2 or pixels.shape[2] not in (2, 4):
        return pixels
    colour, alpha = pixels[:, :, :-1].astype(np.int64), pixels[:, :, -1:].astype(np.int64)
    total = (colour * alpha + 255 * (255 - alpha)) * 128 + (0x80 << 7)
    blended: Array = ((((total >> 8) + total) >> 8) >> 7).astype(np.uint8)
    return blended


def resize_image(pixels_HWC: Array, *, height: int, width: int) -> Array:
    """Bilinear resize of float32 [H, W, C]; shrinking averages over every source pixel (Pillow's BILINEAR)."""
    rows = _make_resize_matrix(pixels_HWC.shape[0], height)
    columns = _make_resize_matrix(pixels_HWC.shape[1], width)
    across = np.einsum("vw,hwc->hvc", columns, pixels_HWC, optimize=True)
    resized: Array = np.einsum("uh,hvc->uvc", rows, across, optimize=True).astype(np.float32)
    return resized


def _make_resize_matrix(source: int, target: int) -> Array:
    """[target, source] weights of a triangle filter, widened by the factor of shrinking; rows sum to 1."""
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(source)[None, :] - centres[:, None]) / reach)
    matrix: Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _read_file(path: Path) -> Array:
    data = read_bytes(path, what="picture")
    try:
        if data.startswith(SIGNATURE):
            return decode_png(data)
        if data.startswith(_NPY_MAGIC):
            return read_npy(path)
        if header := _PNM_HEADER.match(data):
            return _decode_pnm(header, data)
    except NotDecodedHereError as error:
        return _read_with_pillow(path, data, str(error))
    except (ValueError, EOFError, MemoryError) as error:
        raise _refuse(path, str(error) or "it does not fit into memory") from None
    return _read_with_pillow(path, data, "it is no PNG, PPM, PGM or .npy")


def _refuse(path: Path, got: str) -> InputError:
    return InputError(
        "this is no picture, or it is damaged",
        where=str(path),
        got=got,
        allowed="a picture that opens in a viewer",
        fix="save it again, as PNG for example",
    )


def _decode_pnm(header: re.Match[bytes], data: bytes) -> Array:
    kind, width, height, largest = (int(group) for group in header.groups())
    samples = 3 if kind == 6 else 1
    if not 0 < width * height <= MAX_PIXELS or not 0 < largest <= 65535:
        raise ValueError(f"the picture claims {width} x {height} pixels to {largest}, at most {MAX_PIXELS} are decoded")
    if largest > 255:
        raise NotDecodedHereError("PPM and PGM files of 16 bits are not decoded here")
    count = height * width * samples
    if len(data) - header.end() < count:
        raise ValueError("the picture is truncated")
    pixels = np.frombuffer(data, np.uint8, count, header.end()).reshape(height, width, samples)
    return pixels if largest == 255 else np.minimum(pixels / np.float32(largest), np.float32(1))


def _read_with_pillow(path: Path, data: bytes, problem: str) -> Array:
    """What numpy alone does not decode (`problem` says why), for machines that have Pillow."""
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError:
        raise InputError(
            "the picture cannot be read without Pillow",
            where=str(path),
            got=problem,
            allowed=_NATIVE,
            fix="pip install pillow, or convert it",
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # the limit is ours
            warnings.simplefilter("ignore", UserWarning)  # damaged metadata: what of the picture is there, is decoded
            with pillow.open(io.BytesIO(data)) as picture:
                return convert_with_pillow(picture)
    except (OSError, SyntaxError, ValueError, MemoryError, pillow.DecompressionBombError) as error:
        raise _refuse(path, f"{problem}; Pillow: {_STREAM.sub('', str(error)) or type(error).__name__}") from None


def convert_with_pillow(picture: Any) -> Array:
    """Pixels of an open Pillow picture, uint8 [H, W] or [H, W, 3]; ValueError where nothing says what they mean."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS} are decoded")
    if picture.mode.startswith("I;16"):
        high_bytes: Array = (np.asarray(picture) >> 8).astype(np.uint8)
        return high_bytes
    if picture.mode in ("I", "F"):
        raise ValueError("nothing says what the largest value of a pixel means; save it with 8 or 16 bits")
    pixels: Array = np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
    return pixels


def _to_unit_range(pixels: Array, where: str) -> Array:
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise InputError(
            "a picture has rank 2 or 3",
            where=where,
            got=f"shape {list(pixels.shape)}",
            allowed="[H, W] or [H, W, C]",
            fix="hand over one picture at a time, and none without pixels",
        )
    if pixels.dtype == np.uint8:
        scaled: Array = pixels.astype(np.float32) / np.float32(255)
        return scaled
    if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):
        span = f" from {pixels.min()} to {pixels.max()}" if pixels.dtype.kind in "fiub" else ""
        raise InputError(
            "the picture's values are outside the range of its type",
            where=where,
            got=f"{pixels.dtype}{span}",
            allowed="uint8, or floating point in [0, 1]",
            fix="divide by the largest value that a pixel may have",
        )
    return pixels.astype(np.float32)


def _to_channels(pixels: Array, channels: int, where: str) -> Array:
    """[H, W, channels]: alpha is dropped, grey is repeated, colour is weighted to luma."""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] == channels:
        return pixels
    if pixels.shape[2] in (2, 4):
        pixels = pixels[:, :, :-1]
    if pixels.shape[2] == 3 and channels == 1:
        grey: Array = pixels @ _LUMA[:, None]
        return grey
    if pixels.shape[2] == 1:
        return np.repeat(pixels, channels, axis=2)
    if pixels.shape[2] != channels:
        raise InputError(
            "the picture has the wrong number of channels",
            where=where,
            got=f"{pixels.shape[2]}",
            allowed=f"{channels}, or a grey, RGB or RGBA picture",
            fix="convert it: grey has one channel, RGB three, RGBA four",
        )
    return pixels
