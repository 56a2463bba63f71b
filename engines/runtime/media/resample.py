"""Resizing as Pillow does it, to the last bit, on numpy alone: uint8 in, uint8 out.

    one way, then the other:  out = (sum of weight_k * in_k + 1/2) >> 22, cut to 0..255    weights as 22-bit fixed point

The rounding between the two ways makes their order matter: across first, but for a picture that loses more than twice
as many rows as columns (Pillow 13; before, always across first). Shrinking widens the filter by the factor of
shrinking, so that every source pixel counts. A side that keeps its size is left alone. `nearest` takes the pixel under
the middle of the new one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_FRACTION_BITS = 22


def _box(x: Array) -> Array:
    weights: Array = ((x > -0.5) & (x <= 0.5)).astype(np.float64)
    return weights


def _bilinear(x: Array) -> Array:
    weights: Array = np.maximum(0.0, 1.0 - np.abs(x))
    return weights


def _apply(function: Callable[[float], float], x: Array) -> Array:
    """`math`'s functions on each value: numpy's own differ in the last bit, and the weights with them."""
    return np.array([function(value) for value in x.ravel().tolist()]).reshape(x.shape)


def _hamming(x: Array) -> Array:
    x = np.abs(x)
    angle = np.where(x == 0, 1.0, x * math.pi)
    window = _apply(math.sin, angle) / angle * (0.54 + 0.46 * _apply(math.cos, angle))
    weights: Array = np.where(x == 0, 1.0, np.where(x >= 1, 0.0, window))
    return weights


def _bicubic(x: Array) -> Array:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    weights: Array = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return weights


def _sinc(x: Array) -> Array:
    angle = np.where(x == 0, 1.0, x * math.pi)
    values: Array = np.where(x == 0, 1.0, _apply(math.sin, angle) / angle)
    return values


def _lanczos(x: Array) -> Array:
    weights: Array = np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0)
    return weights


#: name -> the filter, and how far it reaches
_FILTERS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
RESAMPLES = ("nearest", *_FILTERS)


def resize_like_pillow(pixels_HWC: Array, *, height: int, width: int, resample: str) -> Array:
    """uint8 [H, W, C] -> uint8 [height, width, C], equal to `Image.resize((width, height), resample)`.

    Args:
        resample: one of RESAMPLES.
    """
    if resample == "nearest":
        rows = _list_nearest(pixels_HWC.shape[0], height)
        chosen: Array = pixels_HWC[rows][:, _list_nearest(pixels_HWC.shape[1], width)]
        return chosen
    lost_rows, lost_columns = pixels_HWC.shape[0] - height, pixels_HWC.shape[1] - width
    down_first = lost_rows > 0 and lost_rows > 2 * lost_columns
    for is_down in (down_first, not down_first):
        if is_down and lost_rows:
            pixels_HWC = _resize_rows(pixels_HWC, height, resample)
        elif not is_down and lost_columns:
            pixels_HWC = _resize_rows(pixels_HWC.swapaxes(0, 1), width, resample).swapaxes(0, 1)
    return pixels_HWC


def _list_nearest(source: int, target: int) -> Array:
    """The source index of each target pixel; the place is summed up step by step, as Pillow does."""
    scale = source / target
    steps = np.full(target, scale)
    steps[0] = scale * 0.5
    indices: Array = np.cumsum(steps).astype(np.int64).clip(0, source - 1)
    return indices


def _resize_rows(pixels: Array, target: int, resample: str) -> Array:
    """Resize the first axis."""
    first, weights = _make_weights(pixels.shape[0], target, resample)
    total = np.full((target, *pixels.shape[1:]), 1 << (_FRACTION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        index = np.minimum(first + tap, pixels.shape[0] - 1)  # beyond a row's taps the weight is 0
        total += pixels[index].astype(np.int32) * weights[:, tap].reshape(-1, *[1] * (pixels.ndim - 1))
    rounded: Array = (total >> _FRACTION_BITS).clip(0, 255).astype(np.uint8)
    return rounded


def _make_weights(source: int, target: int, resample: str) -> tuple[Array, Array]:
    """The first source row of each target row [target], and the weights from there on [target, taps], int32."""
    make, reach = _FILTERS[resample]
    scale = source / target
    widened = max(scale, 1.0)
    support = reach * widened
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    taps = np.arange(int((last - first).max()))
    place = (taps[None, :] + first[:, None] - centre[:, None] + 0.5) * (1.0 / widened)
    weights = np.where(taps[None, :] < (last - first)[:, None], make(place), 0.0)
    total = np.zeros(target)
    for tap in taps:  # in this order: a sum of floats depends on it
        total += weights[:, tap]
    normed = weights * np.where(total == 0, 1.0, 1.0 / np.where(total == 0, 1.0, total))[:, None]
    scaled = normed * (1 << _FRACTION_BITS)
    return first, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32)
