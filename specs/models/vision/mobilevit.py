"""MobileViT (Mehta and Rastegari 2022, "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision
Transformer"), as transformers' `MobileViTModel`.

    image -> 3 by 3, stride 2 -> two stages of inverted residuals -> three of blocks -> 1 by 1 -> mean -> [Linear]
    block    x -> inverted residual -> k by k, 1 by 1 -> patches -> transformer -> map -> 1 by 1 -> with x, k by k

Shape letters: B batch, C channels, H height, W width of a feature map; P places in a patch, N patches.
Every convolution but the one into the transformer has a BatchNorm and no bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components import MobileVitComponent
from specs.components.vision.mobilevit import DEPTHS
from specs.models.layers import Layer
from specs.models.vision.batch_norm import ConvNorm
from specs.models.vision.pixels import normalise_pixels


class InvertedResidual(nn.Module):
    """MobileNetV2's (Sandler et al. 2018): 1 by 1 to more channels, 3 by 3 in each of them, 1 by 1 back."""

    def __init__(
        self, config: MobileVitComponent, inputs: int, outputs: int, *, stride: int, dilation: int = 1
    ) -> None:
        super().__init__()
        inner, activation = config.expand(inputs), config.activation
        self.has_residual = stride == 1 and inputs == outputs
        self.expand = ConvNorm(inputs, inner, 1, activation=activation)
        self.mix = ConvNorm(inner, inner, 3, stride=stride, dilation=dilation, groups=inner, activation=activation)
        self.reduce = ConvNorm(inner, outputs, 1, activation=None)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.reduce(self.mix(self.expand(x_BCHW)))
        return x_BCHW + y_BCHW if self.has_residual else y_BCHW


class MobileVitBlock(nn.Module):
    """Convolutions see near places; the transformer sees the same place of every patch."""

    def __init__(self, config: MobileVitComponent, inputs: int, outputs: int, *, stage: int) -> None:
        super().__init__()
        self.config = config
        width, kernel, activation = config.hidden_sizes[stage], config.conv_kernel_size, config.activation
        stride, dilation = config.list_steps()[stage]
        self.downsample = InvertedResidual(config, inputs, outputs, stride=stride, dilation=dilation)
        self.near = ConvNorm(outputs, outputs, kernel, activation=activation)
        self.input = nn.Conv2d(outputs, width, 1, bias=False)
        self.layers = nn.ModuleList(
            Layer(
                hidden_size=width,
                num_heads=config.num_heads,
                mlp_size=config.mlp_width(width),
                activation=activation,
                eps=config.layer_norm_eps,
                causal=False,
                qkv_bias=config.qkv_bias,
            )
            for _ in range(DEPTHS[stage + 2])
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output = ConvNorm(width, outputs, 1, activation=activation)
        self.fusion = ConvNorm(2 * outputs, outputs, kernel, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.downsample(x_BCHW)
        y_BCHW = self.input(self.near(x_BCHW))
        size = (int(y_BCHW.shape[2]), int(y_BCHW.shape[3]))
        tokens = self._make_patches(y_BCHW, size)
        for layer in self.layers:
            tokens = layer(tokens)
        seen_BCHW = self.output(self._make_map(self.norm(tokens), size))
        fused_BCHW: Tensor = self.fusion(torch.cat([x_BCHW, seen_BCHW], dim=1))
        return fused_BCHW

    def _make_patches(self, x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, C, H, W] -> [B P, N, C]: one sequence for each place of a patch; a map that no patches fill is scaled."""
        side, (rows, columns) = self.config.patch_size, self.config.count_patches(size)
        x_BCHW = _resize(x_BCHW, (rows * side, columns * side))
        split = x_BCHW.reshape(-1, x_BCHW.shape[1], rows, side, columns, side)
        return split.permute(0, 3, 5, 2, 4, 1).reshape(-1, rows * columns, x_BCHW.shape[1])

    def _make_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """[B P, N, C] -> [B, C, H, W]."""
        side, (rows, columns) = self.config.patch_size, self.config.count_patches(size)
        split = tokens.reshape(-1, side, side, rows, columns, tokens.shape[2])
        x_BCHW = split.permute(0, 5, 3, 1, 4, 2).reshape(-1, tokens.shape[2], rows * side, columns * side)
        return _resize(x_BCHW, size)


def _resize(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x_BCHW.shape[2:]) == size:
        return x_BCHW
    return functional.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


class MobileVit(nn.Module):
    """`MobileVitComponent` says its sizes. With `num_classes` a classifier, else a tower of features."""

    def __init__(self, config: MobileVitComponent) -> None:
        super().__init__()
        self.config = config
        necks, activation = config.neck_hidden_sizes, config.activation
        self.stem = ConvNorm(config.num_channels, necks[0], 3, stride=2, activation=activation)
        self.stages = nn.ModuleList()
        for stage in (0, 1):  # the first keeps the size, the second halves it
            self.stages.append(
                nn.Sequential(
                    *(
                        InvertedResidual(
                            config, necks[stage + (index > 0)], necks[stage + 1], stride=1 if index else 1 + stage
                        )
                        for index in range(DEPTHS[stage])
                    )
                )
            )
        for stage in (0, 1, 2):
            self.stages.append(MobileVitBlock(config, necks[stage + 2], necks[stage + 3], stage=stage))
        self.output = ConvNorm(necks[5], necks[6], 1, activation=activation)
        self.head = nn.Linear(necks[6], config.num_classes) if config.num_classes else None

    def forward(self, image_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[B, channels, H, W] in [0, 1] -> logits [B, classes], or embedding [B, C] and feature map [B, C, h, w]."""
        x_BCHW = self.stem(normalise_pixels(image_BCHW, self.config))
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        x_BCHW = self.output(x_BCHW)
        pooled_BC = x_BCHW.mean(dim=(2, 3))
        return (pooled_BC, x_BCHW) if self.head is None else self.head(pooled_BC)
