"""ResNet (He et al. 2016, "Deep Residual Learning for Image Recognition"), as transformers' `ResNetModel`.

    image -> 7 by 7 convolution, stride 2 -> maximum of 3 by 3, stride 2 -> stages -> mean over places -> [Linear]
    layer    x' = act(x + convolutions(x)), x through a 1 by 1 convolution where width or size change

Shape letters: B batch, C channels, H height, W width. Every convolution has a BatchNorm and no bias.

Inside a layer the activation is always ReLU; the config's own one is the stem's and that of the sums, as in
transformers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from specs.components import ResNetComponent
from specs.models.layers import activate
from specs.models.vision.batch_norm import ConvNorm
from specs.models.vision.pixels import normalise_pixels


class ResidualLayer(nn.Module):
    """`basic`: two 3 by 3 convolutions. `bottleneck`: to a quarter of the channels, 3 by 3, and back."""

    def __init__(self, config: ResNetComponent, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.activation = config.activation
        changes = inputs != outputs or stride != 1
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, activation=None) if changes else None
        if config.layer_type == "basic":
            self.convolutions = nn.Sequential(
                ConvNorm(inputs, outputs, 3, stride=stride, activation="relu"),
                ConvNorm(outputs, outputs, 3, activation=None),
            )
            return
        inner = config.reduce(outputs)
        first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
        self.convolutions = nn.Sequential(
            ConvNorm(inputs, inner, 1, stride=first, activation="relu"),
            ConvNorm(inner, inner, 3, stride=second, activation="relu"),
            ConvNorm(inner, outputs, 1, activation=None),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kept_BCHW = x_BCHW if self.shortcut is None else self.shortcut(x_BCHW)
        return activate(kept_BCHW + self.convolutions(x_BCHW), self.activation)


class ResNet(nn.Module):
    """`ResNetComponent` says its sizes. With `num_classes` a classifier, else a tower of features."""

    def __init__(self, config: ResNetComponent) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_size
        self.stem = ConvNorm(config.num_channels, width, 7, stride=2, activation=config.activation)
        self.stages = nn.ModuleList()
        for outputs, depth, stride in zip(config.hidden_sizes, config.depths, config.list_strides(), strict=True):
            layers = [
                ResidualLayer(config, outputs if index else width, outputs, stride=1 if index else stride)
                for index in range(depth)
            ]
            self.stages.append(nn.Sequential(*layers))
            width = outputs
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None

    def forward(self, image_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[B, channels, H, W] in [0, 1] -> logits [B, classes], or embedding [B, C] and feature map [B, C, h, w]."""
        x_BCHW = self.stem(normalise_pixels(image_BCHW, self.config))
        x_BCHW = functional.max_pool2d(x_BCHW, 3, stride=2, padding=1)
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        pooled_BC = x_BCHW.mean(dim=(2, 3))
        return (pooled_BC, x_BCHW) if self.head is None else self.head(pooled_BC)
