"""What the image processor of a model's library does to a picture of any size: resize as Pillow does, then a crop.

    uint8 [H, W, C] -> stretch | shortest edge | nothing -> crop around the centre -> uint8

The steps are a manifest's `pipeline.image.steps`; `specs/components/vision/picture_steps.py` says the same of a spec.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.fields import take_choice
from engines.runtime.media.resample import resize_like_pillow
from specs.errors import BundleError, InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_AT = "pipeline.image.steps"
_WAYS = ("stretch", "shortest_edge", "none")
_FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
LONGEST_SIDE = 1 << 15  # pixels
_MOST_RESIZED = 1 << 24  # pixels, where a picture's shortest edge decides its size


def check_steps(steps: Mapping[str, Any]) -> None:
    """Raises BundleError where a manifest's steps are none that `apply_steps` takes."""
    way = take_choice({"resize": "none", **steps}, "resize", _WAYS, at=_AT)
    take_choice({"resample": "bilinear", **steps}, "resample", _FILTERS, at=_AT)
    size, crop = steps.get("size"), steps.get("crop")
    sizes = [*([] if way == "none" else [("size", size)]), *([] if crop is None else [("crop", crop)])]
    for key, value in sizes:
        one_number = key == "size" and way == "shortest_edge"
        sides = value if isinstance(value, (list, tuple)) and not one_number else [value, value]
        if len(sides) != 2 or not all(type(side) is int and 1 <= side <= LONGEST_SIDE for side in sides):
            raise BundleError(
                f"manifest: {_AT}.{key} is no size",
                got=repr(value)[:80],
                allowed="a whole number of pixels" + ("" if one_number else ", or two"),
                fix="export the bundle again",
            )


def apply_steps(pixels_HWC: Array, steps: Mapping[str, Any]) -> Array:
    """uint8 [H, W, C], resized and cropped; what lies outside the picture is black."""
    resize, size = steps.get("resize", "none"), steps.get("size", 0)
    height, width = pixels_HWC.shape[:2]
    if resize == "stretch":
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
    elif resize == "shortest_edge":
        longest = int(size * max(height, width) / min(height, width))
        if longest * int(size) > _MOST_RESIZED:
            raise InputError(
                "the picture is too long and thin to be resized by its shortest edge",
                got=f"{height} by {width} pixels become {longest} by {size}",
                allowed=f"at most {_MOST_RESIZED} pixels",
                fix="crop it to what shall be seen",
            )
        height, width = (longest, size) if width <= height else (size, longest)
    if (height, width) != pixels_HWC.shape[:2]:
        resample = steps.get("resample", "bilinear")
        pixels_HWC = _resize_bytes(pixels_HWC, height=height, width=width, resample=resample)
    crop = steps.get("crop")
    if crop is None:
        return pixels_HWC
    return _crop_centre(pixels_HWC, *(crop if isinstance(crop, (list, tuple)) else (crop, crop)))


def _resize_bytes(pixels_HWC: Array, *, height: int, width: int, resample: str) -> Array:
    """Pillow's own resize where it is installed (the library's answer on this machine), else ours, which equals it."""
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError:
        return resize_like_pillow(pixels_HWC, height=height, width=width, resample=resample)
    planes = [pillow.fromarray(np.ascontiguousarray(plane)) for plane in pixels_HWC.transpose(2, 0, 1)]
    code = getattr(pillow.Resampling, resample.upper())
    resized: Array = np.stack([np.asarray(plane.resize((width, height), code)) for plane in planes], axis=-1)
    return resized


def _crop_centre(pixels_HWC: Array, height: int, width: int) -> Array:
    have_height, have_width, channels = pixels_HWC.shape
    top, left = (have_height - height) // 2, (have_width - width) // 2
    cropped = np.zeros((height, width, channels), pixels_HWC.dtype)
    rows, columns = (
        slice(max(top, 0), min(top + height, have_height)),
        slice(max(left, 0), min(left + width, have_width)),
    )
    part = pixels_HWC[rows, columns]
    cropped[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part
    return cropped
