"""The first step of every model that looks at pictures: pixels as the model was trained on them, in the graph."""

from __future__ import annotations

import torch
from torch import Tensor

from specs.components import PictureComponent


def normalise_pixels(image_BCHW: Tensor, config: PictureComponent) -> Tensor:
    """[batch, channels, height, width] in [0, 1] -> (image - mean) / std, in the model's order of channels.

    As one multiply and one add a channel.
    """
    mean = torch.tensor(config.image_mean, dtype=image_BCHW.dtype)[:, None, None]
    std = torch.tensor(config.image_std, dtype=image_BCHW.dtype)[:, None, None]
    pixels_BCHW = image_BCHW * (1 / std) - mean / std
    return pixels_BCHW.index_select(1, torch.tensor([2, 1, 0])) if config.channel_order == "bgr" else pixels_BCHW
