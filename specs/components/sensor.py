"""Encoders of sensors: clouds of points, and time series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Epsilon, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_linear, cost_norm
from specs.components.encoder import EncoderComponent, EncoderInput
from specs.components.measured import MeasuredComponent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BEAMS = 16  # of the made-up scanner


class PooledSensor(MeasuredComponent, EncoderComponent):
    """A set of any size -> `num_latents` tokens that looked at it: Set Transformer's pooling (Lee et al. 2019)."""

    hidden_size: Size = Field(description="width of the tokens")
    num_heads: Size = 4
    num_latents: Size = Field(default=8, description="tokens that are made, whatever the length of the input")
    mlp_size: Size | None = Field(default=None, description="width of the MLP; 4 * hidden_size when absent")
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _check_heads(self) -> PooledSensor:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    @property
    def output_tokens(self) -> int:
        return self.num_latents

    @property
    def feature_size(self) -> int:
        return self.hidden_size

    def _measure_pool(self, places: int) -> Cost:
        width, latents = self.hidden_size, self.num_latents
        cost = Cost(latents * width) + cost_norm(width) + cost_norm(width) + cost_norm(width) + cost_norm(width)
        cost += cost_attention(width, width, latents, places, self.num_heads, bias=True)
        return cost + cost_linear(width, self.mlp_width, latents) + cost_linear(self.mlp_width, width, latents)

    def measure(self) -> Cost:
        """At the length that the kind's dim is tuned for."""
        ((_, typical, _),) = self.DIMS.values()
        return self._measure(typical)

    def _measure(self, length: int) -> Cost:
        """Of a sample of so many points or steps."""
        raise NotImplementedError


class PointsComponent(PooledSensor):
    """LIDAR or radar: points [batch, points, point_size] and how many are real -> tokens.

    Each point through the same small network (PointNet; Qi et al. 2017), then pooled by attention. The first three
    values are metres and are divided by `range_m` in the graph; the others are taken as they are. The order of the
    points means nothing.
    """

    DIMS: ClassVar[Mapping[str, tuple[int, int, int]]] = {"points": (1, 4096, 16384)}

    kind: Literal["sensor.points"]
    point_size: Annotated[int, Field(ge=3, le=64)] = Field(default=4, description="x, y, z, and what else a point has")
    range_m: Positive = Field(default=50.0, description="metres that become 1")

    def list_inputs(self) -> tuple[EncoderInput, ...]:
        points = EncoderInput("points", ("points", self.point_size), low=-self.range_m, high=self.range_m)
        return points, EncoderInput("lengths", (), "int64", 1, 2, counts="points")

    def draw_example(self, name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
        """A scanner's rings over the ground, with walls at different distances."""
        if name != "points":
            return super().draw_example(name, shape, random)
        import numpy as np

        batch, count, size = shape
        angle = random.uniform(0, 2 * np.pi, (batch, count))
        tilt = random.integers(0, _BEAMS, (batch, count)) / _BEAMS - 0.5
        wall = self.range_m * (0.2 + 0.6 * random.random((batch, 1)) * (1 + 0.3 * np.sin(3 * angle)))
        points = np.stack([wall * np.cos(angle), wall * np.sin(angle), wall * tilt / 2], axis=-1)
        return np.concatenate([points, random.random((batch, count, size - 3))], axis=-1)

    def _measure(self, length: int) -> Cost:
        width = self.hidden_size
        cost = cost_linear(self.point_size, width, length) + cost_linear(width, width, length)
        return cost + self._measure_pool(length)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, points = sizes["batch"], sizes["points"]
        made = self.output_tokens * self.hidden_size
        return Activations(
            layer=batch * self._measure(points).peak, interface=batch * (points * self.point_size + made)
        )


class SeriesComponent(PooledSensor):
    """EEG, IMU and their kin: series [batch, steps, channels] and how many steps are real -> tokens.

    Every channel of every row is standardised over its real steps in the graph; patches of `patch_size` steps get
    sinusoidal positions and pass through pre-norm layers (PatchTST; Nie et al. 2023), then are pooled by attention.
    """

    DIMS: ClassVar[Mapping[str, tuple[int, int, int]]] = {"steps": (1, 256, 2048)}

    kind: Literal["sensor.series"]
    num_channels: Size = Field(description="values a step: 6 of an IMU, 32 of an EEG cap")
    patch_size: Size = Field(default=16, description="steps that become one patch")
    num_layers: LayerCount = 2

    def list_inputs(self) -> tuple[EncoderInput, ...]:
        series = EncoderInput("series", ("steps", self.num_channels))
        return series, EncoderInput("lengths", (), "int64", 1, 2, counts="steps")

    def draw_example(self, name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
        """Waves of each channel's own height, frequency and level, with noise."""
        if name != "series":
            return super().draw_example(name, shape, random)
        import numpy as np

        batch, steps, channels = shape
        height, frequency, phase, level = random.uniform(0, 1, (4, batch, 1, channels))
        turns = frequency * 0.1 * np.arange(steps)[None, :, None] + phase
        series: NDArray[Any] = 4 * height * np.sin(2 * np.pi * turns) + 10 * level
        return series + 0.3 * random.standard_normal(shape)

    def _measure(self, length: int) -> Cost:
        width, places = self.hidden_size, -(-length // self.patch_size)
        cost = cost_linear(self.num_channels * self.patch_size, width, places)
        for _ in range(self.num_layers):
            cost += cost_norm(width) + cost_norm(width)
            cost += cost_attention(width, width, places, places, self.num_heads, bias=True)
            cost += cost_linear(width, self.mlp_width, places) + cost_linear(self.mlp_width, width, places)
        return cost + self._measure_pool(places)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, steps = sizes["batch"], sizes["steps"]
        made = self.output_tokens * self.hidden_size
        return Activations(
            layer=batch * self._measure(steps).peak, interface=batch * (steps * self.num_channels + made)
        )
