"""The diffusion transformer: a denoiser without convolutions but its patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_conv, cost_linear

_KEYS = 120  # text tokens where nothing says how many: PixArt's
#: Width of the sinusoids of a timestep, a resolution, an aspect ratio.
SINUSOIDS = 256


class DitComponent(Component):
    """`PixArtTransformer2DModel` (PixArt-alpha and -sigma; Chen et al. 2023): DiT with one modulation for all layers.

    The position table is made for one size of picture, so the graph's height and width are fixed: dims with min = max.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "attention_bias", "size_conditions", "upcast_attention"})

    kind: Literal["diffusion.dit"]
    in_channels: Size = 4
    out_channels: Size = Field(default=8, description="twice in_channels where the variance is learned too")
    hidden_size: Size
    num_layers: LayerCount
    num_heads: Size
    patch_size: Size = 2
    cross_attention_size: Size | None = Field(default=None, description="of the text states; hidden_size when absent")
    caption_size: Size | None = Field(
        default=None, description="width of the text states as they come, where an MLP projects them"
    )
    attention_bias: bool = True
    size_conditions: bool = Field(default=False, description="resolution and aspect ratio join the timestep")
    interpolation_scale: Positive = Field(default=1.0, description="of the position table")
    base_size: Size = Field(description="latent height that positions were trained at; others are scaled to it")
    upcast_attention: bool = Field(default=False, description="fp16 graphs keep attention scores in float32")
    sample_size: tuple[Size, Size] = Field(description="latent height and width")

    @model_validator(mode="after")
    def _check_sizes(self) -> DitComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        check_divides(self.hidden_size, 4, size_name="hidden_size", heads_name="the position table's part")
        if self.size_conditions:
            check_divides(self.hidden_size, 3, size_name="hidden_size", heads_name="the size conditions' part")
        return self

    @property
    def context_size(self) -> int:
        """Width of the text states that the graph takes."""
        return self.caption_size or self.cross_width

    @property
    def cross_width(self) -> int:
        return self.cross_attention_size or self.hidden_size

    def count_parameters(self) -> int:
        return self._walk(*self.sample_size, _KEYS).parameters

    def count_macs(self, tokens: int) -> int:
        """Of one step on latents of `sample_size`, with 120 tokens of text."""
        return self._walk(*self.sample_size, _KEYS).macs

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, keys = sizes["batch"], sizes.get("tokens", _KEYS)
        height, width = sizes.get("height", self.sample_size[0]), sizes.get("width", self.sample_size[1])
        interface = (self.in_channels + self.out_channels) * height * width + keys * self.context_size
        return Activations(layer=batch * self._walk(height, width, keys).peak, interface=batch * interface)

    def _walk(self, height: int, width: int, keys: int) -> Cost:
        wide, patch = self.hidden_size, self.patch_size
        places = (height // patch) * (width // patch)
        cost = cost_conv(self.in_channels, wide, patch, places) + cost_linear(wide, 6 * wide)
        cost += cost_linear(SINUSOIDS, wide) + cost_linear(wide, wide)
        if self.size_conditions:
            for _ in range(2):
                cost += cost_linear(SINUSOIDS, wide // 3) + cost_linear(wide // 3, wide // 3)
        if self.caption_size:
            cost += cost_linear(self.caption_size, wide, keys) + cost_linear(wide, wide, keys)
        for _ in range(self.num_layers):
            cost += Cost(parameters=6 * wide)
            cost += cost_attention(wide, wide, places, places, self.num_heads, bias=self.attention_bias)
            cost += cost_attention(wide, self.cross_width, places, keys, self.num_heads, bias=self.attention_bias)
            cost += cost_linear(wide, 4 * wide, places) + cost_linear(4 * wide, wide, places)
        return cost + Cost(parameters=2 * wide) + cost_linear(wide, patch * patch * self.out_channels, places)
