"""The convolutional blocks that the autoencoder and the U-Net of latent diffusion share.

    ResNet block   x + conv2(silu(norm2(conv1(silu(norm1(x))) + time))),  x through a 1 by 1 convolution where it widens

Shape letters: B batch, C channels, H height, W width, E width of the time embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops


class GroupNormSilu(nn.Module):
    """silu(GroupNorm(x)) (Wu and He 2018)."""

    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return ops.group_norm_silu(x_BCHW, self.weight, self.bias, groups=self.groups, eps=self.eps)


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a condition, and a shortcut (He et al. 2016, as Ho et al. 2020 use it).

    Args:
        condition: width of the time embedding that is added between the two; 0 for none.
        scale_shift: the condition scales and shifts the second norm instead (Dhariwal and Nichol 2021).
        scale: what the sum is divided by.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        groups: int,
        eps: float,
        condition: int = 0,
        scale_shift: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale, self.scale_shift = scale, scale_shift
        self.norm1 = GroupNormSilu(groups, inputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_projection = nn.Linear(condition, outputs * (1 + scale_shift)) if condition else None
        self.norm2: nn.Module = (
            nn.GroupNorm(groups, outputs, eps) if scale_shift else GroupNormSilu(groups, outputs, eps)
        )
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x_BCHW: Tensor, time_BE: Tensor | None = None) -> Tensor:
        """`time_BE` is the embedding behind its SiLU, which all blocks share."""
        mixed_BCHW = self.conv1(self.norm1(x_BCHW))
        time_BC11 = None
        if self.time_projection is not None:
            time_BC11 = self.time_projection(time_BE)[:, :, None, None]
        if time_BC11 is not None and self.scale_shift:
            scale_BC11, shift_BC11 = time_BC11.chunk(2, dim=1)
            mixed_BCHW = functional.silu(self.norm2(mixed_BCHW) * (1 + scale_BC11) + shift_BC11)
        else:
            mixed_BCHW = self.norm2(mixed_BCHW if time_BC11 is None else mixed_BCHW + time_BC11)
        if self.shortcut is not None:
            x_BCHW = self.shortcut(x_BCHW)
        out_BCHW: Tensor = x_BCHW + self.conv2(mixed_BCHW)
        return out_BCHW if self.scale == 1.0 else out_BCHW / self.scale


class Downsample(nn.Module):
    """A convolution of stride 2. Padding 0 means one row below and one column to the right, as the autoencoder has."""

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv(x_BCHW if self.padding else functional.pad(x_BCHW, (0, 1, 0, 1)))
        return out_BCHW


class Upsample(nn.Module):
    """Nearest neighbours to twice the size, or to the size of a skip connection, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor, like_BCHW: Tensor | None = None) -> Tensor:
        """The result has the height and width of `like_BCHW`, which may be odd: one less than twice as much."""
        if like_BCHW is None:
            wide_BCHW = functional.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")
        else:
            wide_BCHW = functional.interpolate(x_BCHW, size=like_BCHW.shape[2:], mode="nearest")
        out_BCHW: Tensor = self.conv(wide_BCHW)
        return out_BCHW
