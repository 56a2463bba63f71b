"""Residual networks of convolutions, as components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, LayerCount, Size
from specs.components.costs import Cost, cost_conv_norm, cost_linear
from specs.components.measured import MeasuredComponent
from specs.components.vision.picture import PictureComponent

_REDUCTION = 4  # of a bottleneck's inner channels


class ResNetComponent(PictureComponent, MeasuredComponent):
    """ResNet (He et al. 2016): a strided stem, stages of residual layers, the mean over all places, and a Linear.

    Every convolution is followed by a BatchNorm with stored statistics. The defaults are ResNet-50, whose layers
    halve a picture in their 3 by 3 convolution; the paper's own first one does (`downsample_in_bottleneck`).
    """

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("cnn",)
    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {
            "kind",
            "num_channels",
            "layer_type",
            "downsample_in_first_stage",
            "downsample_in_bottleneck",
            "activation",
        }
    )

    kind: Literal["vision.resnet"]
    embedding_size: Size = Field(default=64, description="channels of the stem")
    hidden_sizes: tuple[Size, ...] = Field(default=(256, 512, 1024, 2048), description="channels that each stage gives")
    depths: tuple[LayerCount, ...] = Field(default=(3, 4, 6, 3), description="layers of each stage")
    layer_type: Literal["basic", "bottleneck"] = Field(
        default="bottleneck", description="basic: two 3 by 3 convolutions; bottleneck: 1 by 1, 3 by 3, 1 by 1"
    )
    downsample_in_first_stage: bool = Field(default=False, description="whether the first stage halves too")
    downsample_in_bottleneck: bool = Field(default=False, description="halve in the first 1 by 1, not in the 3 by 3")
    activation: Activation = Field(default="relu", description="of the stem and of each sum; inside a layer it is relu")

    @model_validator(mode="after")
    def _check_stages(self) -> ResNetComponent:
        if not self.depths or len(self.depths) != len(self.hidden_sizes):
            raise ValueError(f"depths names {len(self.depths)} stages, hidden_sizes {len(self.hidden_sizes)}")
        if self.layer_type == "bottleneck" and min(self.hidden_sizes) < _REDUCTION:
            raise ValueError(f"hidden_sizes of a bottleneck are {_REDUCTION} or more, got {min(self.hidden_sizes)}")
        return self

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        height, width = self._list_sizes()[-1]
        return {"embedding": (self.hidden_sizes[-1],), "feature_map": (self.hidden_sizes[-1], height, width)}

    def list_strides(self) -> tuple[int, ...]:
        """How much each stage divides height and width by."""
        return (1 + self.downsample_in_first_stage, *[2] * (len(self.depths) - 1))

    def reduce(self, outputs: int) -> int:
        """Inner channels of a bottleneck that gives `outputs`."""
        return outputs // _REDUCTION

    def _list_sizes(self) -> list[tuple[int, int]]:
        """Height and width behind the stem's convolution, its pooling, and each stage."""
        height, width = self.image
        sizes = []
        for stride in (2, 2, *self.list_strides()):
            height, width = -(-height // stride), -(-width // stride)
            sizes.append((height, width))
        return sizes

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        places = [height * width for height, width in self._list_sizes()]
        cost = cost_conv_norm(self.num_channels, self.embedding_size, 7, places[0])
        inputs, before = self.embedding_size, places[1]
        for outputs, depth, stride, after in zip(
            self.hidden_sizes, self.depths, self.list_strides(), places[2:], strict=True
        ):
            for index in range(depth):
                cost += self._measure_layer(inputs, outputs, stride if index == 0 else 1, before, after)
                inputs, before = outputs, after
        return cost + (cost_linear(inputs, self.num_classes) if self.num_classes else Cost())

    def _measure_layer(self, inputs: int, outputs: int, stride: int, before: int, after: int) -> Cost:
        cost = Cost(peak=(inputs + outputs) * after)
        if inputs != outputs or stride != 1:
            cost += cost_conv_norm(inputs, outputs, 1, after)
        if self.layer_type == "basic":
            return cost + cost_conv_norm(inputs, outputs, 3, after) + cost_conv_norm(outputs, outputs, 3, after)
        inner, first = self.reduce(outputs), after if self.downsample_in_bottleneck else before
        cost += cost_conv_norm(inputs, inner, 1, first) + cost_conv_norm(inner, inner, 3, after)
        return cost + cost_conv_norm(inner, outputs, 1, after)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        return self.hold_pictures(sizes["batch"] * self.measure().peak, sizes)
