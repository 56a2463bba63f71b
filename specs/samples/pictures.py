"""Made-up pictures for golden and calibration data: noise over gradients, as values and as raw pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.schema import TensorSpec


def make_picture(tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """`image` or `pixels`, whichever a graph takes."""
    return make_pixels(shape, random) if tensor.name == "pixels" else make_image(shape, random)


def make_image(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """Pixels [B, C, H, W] in [0, 1): noise over a gradient of each image's own, as pictures have both."""
    batch, channels, height, width = shape
    slope_y, slope_x, level = random.random((3, batch, channels, 1, 1))
    gradient = slope_y * np.linspace(0, 1, height)[:, None] + slope_x * np.linspace(0, 1, width) + level
    image: NDArray[Any] = gradient / 3 * 0.7 + random.random(shape) * 0.3
    return image


def make_pixels(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """`make_image` as raw pixels, uint8 [B, H, W, C]."""
    batch, height, width, channels = shape
    image = make_image((batch, channels, height, width), random)
    pixels: NDArray[Any] = (image.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels
