"""Components that make a shape of a text: a triplane, and the field that is read from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Epsilon, LayerCount, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_linear
from specs.components.measured import MeasuredComponent

_PLANES = 3


class TriplaneComponent(MeasuredComponent):
    """A text's features and a latent -> three planes of features (Chan et al. 2022; Hong et al. 2024).

    A transformer over one token a patch of each plane, conditioned as DiT is (Peebles & Xie 2022): norms whose shift,
    scale and gate come from the text and the latent.
    """

    kind: Literal["mesh.triplane"]
    text_size: Size = Field(description="width of the text's features")
    latent_size: Size = Field(description="of the noise that tells one shape of a text from another")
    hidden_size: Size
    num_layers: LayerCount
    num_heads: Size
    mlp_size: Size
    plane_tokens: Size = Field(description="height and width of a plane in tokens")
    patch_size: Size = Field(description="height and width of a token in the plane's cells")
    plane_channels: Size
    layer_norm_eps: Epsilon = 1e-6

    @model_validator(mode="after")
    def _check_heads(self) -> TriplaneComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def plane_size(self) -> int:
        """Height and width of a plane in cells."""
        return self.plane_tokens * self.patch_size

    @property
    def num_tokens(self) -> int:
        return _PLANES * self.plane_tokens**2

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        width, tokens = self.hidden_size, self.num_tokens
        cost = Cost(tokens * width) + cost_linear(self.text_size, width) + cost_linear(self.latent_size, width)
        for _ in range(self.num_layers):
            cost += cost_linear(width, 6 * width)
            cost += cost_attention(width, width, tokens, tokens, self.num_heads, bias=True)
            cost += cost_linear(width, self.mlp_size, tokens) + cost_linear(self.mlp_size, width, tokens)
        cost += cost_linear(width, 2 * width)
        return cost + cost_linear(width, self.plane_channels * self.patch_size**2, tokens)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        planes = _PLANES * self.plane_channels * self.plane_size**2
        return Activations(layer=batch * self.measure().peak, interface=batch * planes)


class FieldComponent(MeasuredComponent):
    """A triplane and points -> signed distance and colour of each (Gupta & Ramamoorthi 2022 read occupancy so)."""

    kind: Literal["mesh.field"]
    plane_channels: Size
    plane_size: Size = Field(description="height and width of a plane in cells")
    hidden_size: Size
    num_layers: LayerCount = Field(description="Linears of hidden_size before the output")
    radius: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="of the sphere whose distance the network corrects, in [-1, 1]"
    )

    def measure(self, points: int = 1) -> Cost:
        """The walk through the module's layers, for so many points."""
        cost = Cost(macs=4 * _PLANES * self.plane_channels * points, peak=_PLANES * self.plane_channels * points)
        inputs = self.plane_channels
        for _ in range(self.num_layers):
            cost += cost_linear(inputs, self.hidden_size, points)
            inputs = self.hidden_size
        return cost + cost_linear(self.hidden_size, 4, points)

    def count_macs(self, tokens: int) -> int:
        return self.measure(tokens).macs

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, points = sizes["batch"], sizes["points"]
        planes = _PLANES * self.plane_channels * self.plane_size**2
        return Activations(layer=batch * self.measure(points).peak, interface=batch * (planes + 7 * points))
