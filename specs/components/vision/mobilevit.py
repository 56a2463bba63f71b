"""MobileViT: convolutions and transformers in turn, as a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Epsilon, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_conv, cost_conv_norm, cost_linear, cost_norm
from specs.components.measured import MeasuredComponent
from specs.components.vision.picture import PictureComponent

#: Layers of the five stages: inverted residuals in the first two, transformer layers in the others (Table 4 there).
DEPTHS = (1, 3, 2, 4, 3)
_NECKS, _WIDTHS = 7, 3
_Ratio = Annotated[float, Field(gt=0, le=64)]


class MobileVitComponent(PictureComponent, MeasuredComponent):
    """MobileViT (Mehta and Rastegari 2022): MobileNetV2's inverted residuals, and transformers over patches.

    Pixels at the same place of every patch attend to one another. The defaults are MobileViT-S.
    """

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("hybrid",)
    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {"kind", "num_channels", "channel_order", "activation", "output_stride", "qkv_bias"}
    )

    kind: Literal["vision.mobilevit"]
    patch_size: Size = Field(default=2, description="height and width of a patch, in places of the feature map")
    neck_hidden_sizes: tuple[Size, ...] = Field(
        default=(16, 32, 64, 96, 128, 160, 640), description="channels of the stem, of the five stages, of the end"
    )
    hidden_sizes: tuple[Size, ...] = Field(default=(144, 192, 240), description="widths of the three transformers")
    num_heads: Size = 4
    mlp_ratio: _Ratio = Field(default=2.0, description="width of an MLP over its transformer's")
    expand_ratio: _Ratio = Field(default=4.0, description="channels inside an inverted residual over its inputs")
    conv_kernel_size: Size = Field(default=3, description="of the convolutions around a transformer; odd")
    output_stride: Literal[8, 16, 32] = Field(
        default=32, description="pixels a place of the last feature map stands for; below 32 convolutions are dilated"
    )
    activation: Activation = "silu"
    qkv_bias: bool = True
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _check_sizes(self) -> MobileVitComponent:
        for key, count in (("neck_hidden_sizes", _NECKS), ("hidden_sizes", _WIDTHS)):
            if len(getattr(self, key)) != count:
                raise ValueError(f"{key} needs {count} numbers, got {len(getattr(self, key))}")
        for width in self.hidden_sizes:
            check_divides(width, self.num_heads, size_name="hidden_sizes", heads_name="num_heads")
            if self.mlp_width(width) < 1:
                raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves an MLP of {width} nothing")
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd, got {self.conv_kernel_size}")
        return self

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        return {
            "embedding": (self.neck_hidden_sizes[-1],),
            "feature_map": (self.neck_hidden_sizes[-1], *self.list_sizes()[-1]),
        }

    def mlp_width(self, width: int) -> int:
        """Of a transformer of `width`."""
        return int(width * self.mlp_ratio)

    def expand(self, inputs: int) -> int:
        """Channels inside an inverted residual: a multiple of 8, and not less than 0.9 of what was asked for."""
        wanted = round(inputs * self.expand_ratio)
        near = max(8, int(wanted + 4) // 8 * 8)
        return near + 8 if near < 0.9 * wanted else near

    def list_steps(self) -> tuple[tuple[int, int], ...]:
        """Stride and dilation with which each of the three transformer stages begins."""
        return {32: ((2, 1), (2, 1), (2, 1)), 16: ((2, 1), (2, 1), (1, 1)), 8: ((2, 1), (1, 1), (1, 2))}[
            self.output_stride
        ]

    def list_sizes(self) -> list[tuple[int, int]]:
        """Height and width behind the stem and behind each of the five stages."""
        height, width = self.image
        sizes = []
        for stride in (2, 1, 2, *(stride for stride, _ in self.list_steps())):
            height, width = -(-height // stride), -(-width // stride)
            sizes.append((height, width))
        return sizes

    def count_patches(self, size: tuple[int, int]) -> tuple[int, int]:
        """How many patches cover a feature map, along height and width."""
        return -(-size[0] // self.patch_size), -(-size[1] // self.patch_size)

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        necks, sizes = self.neck_hidden_sizes, self.list_sizes()
        places = [height * width for height, width in sizes]
        cost = cost_conv_norm(self.num_channels, necks[0], 3, places[0])
        for stage in (1, 2):
            inputs, before = necks[stage - 1], places[stage - 1]
            for _ in range(DEPTHS[stage - 1]):
                cost += self._measure_residual(inputs, necks[stage], before, places[stage])
                inputs, before = necks[stage], places[stage]
        for stage, width in enumerate(self.hidden_sizes, start=3):
            cost += self._measure_residual(necks[stage - 1], necks[stage], places[stage - 1], places[stage])
            cost += self._measure_transformer(necks[stage], width, DEPTHS[stage - 1], sizes[stage])
        cost += cost_conv_norm(necks[5], necks[6], 1, places[5])
        return cost + (cost_linear(necks[6], self.num_classes) if self.num_classes else Cost())

    def _measure_residual(self, inputs: int, outputs: int, before: int, after: int) -> Cost:
        inner = self.expand(inputs)
        cost = cost_conv_norm(inputs, inner, 1, before) + cost_conv_norm(inner, inner, 3, after, groups=inner)
        return cost + cost_conv_norm(inner, outputs, 1, after)

    def _measure_transformer(self, channels: int, width: int, depth: int, size: tuple[int, int]) -> Cost:
        kernel, places = self.conv_kernel_size, size[0] * size[1]
        rows, columns = self.count_patches(size)
        tokens, sequences = rows * columns, self.patch_size**2
        cost = cost_conv_norm(channels, channels, kernel, places) + cost_conv(channels, width, 1, places)
        cost += Cost(parameters=-width)  # that one has no bias
        layer = cost_norm(width) + cost_attention(width, width, tokens, tokens, self.num_heads, bias=self.qkv_bias)
        layer += cost_norm(width) + cost_linear(width, self.mlp_width(width), tokens)
        layer += cost_linear(self.mlp_width(width), width, tokens)
        cost += Cost(depth * layer.parameters, depth * sequences * layer.macs, sequences * layer.peak)
        cost += cost_norm(width) + cost_conv_norm(width, channels, 1, places)
        return cost + cost_conv_norm(2 * channels, channels, kernel, places)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        return self.hold_pictures(sizes["batch"] * self.measure().peak, sizes)
