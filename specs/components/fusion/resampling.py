"""Components that let one sequence look at another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Epsilon, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_linear, cost_norm
from specs.components.measured import MeasuredComponent

#: Tokens of a context where nothing says how many: a ViT's at 224 pixels and patches of 16.
_CONTEXT = 196


class PerceiverComponent(MeasuredComponent):
    """A sequence of any length -> `num_latents` tokens: Flamingo's resampler (Alayrac et al. 2022).

    With `num_frames` it reads the features of so many frames of a film, each with a learned embedding of its time.
    """

    kind: Literal["fusion.perceiver"]
    hidden_size: Size
    num_latents: Size = 64
    num_layers: LayerCount = 2
    num_heads: Size = 8
    mlp_size: Size | None = Field(default=None, description="width of the MLP; 4 * hidden_size when absent")
    input_size: Size | None = Field(default=None, description="width of the sequence, where it is another")
    num_frames: Size | None = Field(default=None, description="of a film; a picture or a sound when absent")
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _check_heads(self) -> PerceiverComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    def measure(self, places: int = _CONTEXT) -> Cost:
        """The walk through the module's layers, over so many tokens."""
        width, latents, frames = self.hidden_size, self.num_latents, self.num_frames or 0
        cost = Cost(latents * width + frames * (self.input_size or width)) + cost_norm(width)
        places *= frames or 1
        if self.input_size:
            cost += cost_linear(self.input_size, width, places)
        for _ in range(self.num_layers):
            cost += cost_norm(width) + cost_norm(width) + cost_norm(width)
            cost += cost_attention(width, width, latents, places + latents, self.num_heads, bias=True)
            cost += cost_linear(width, self.mlp_width, latents) + cost_linear(self.mlp_width, width, latents)
        return cost

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(layer=batch * self.measure().peak, interface=batch * self.num_latents * self.hidden_size)


class CrossAttentionComponent(MeasuredComponent):
    """One sequence looks at another (Vaswani et al. 2017), with a temperature on what it sees."""

    kind: Literal["fusion.cross_attention"]
    hidden_size: Size
    num_heads: Size
    context_size: Size | None = Field(default=None, description="width of what is looked at, where it is another")
    temperature: Positive = Field(default=1.0, description="of the softmax; above 1: softer")
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _check_heads(self) -> CrossAttentionComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    def measure(self, tokens: int = 1) -> Cost:
        """The walk through the module's layers."""
        width = self.hidden_size
        cost = cost_norm(width) + cost_norm(width)
        if self.context_size:
            cost += cost_linear(self.context_size, width, _CONTEXT)
        return cost + cost_attention(width, width, tokens, _CONTEXT, self.num_heads, bias=True)

    def count_macs(self, tokens: int) -> int:
        return self.measure(tokens).macs

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes.get("tokens", 1)
        return Activations(layer=batch * self.measure(tokens).peak, interface=batch * tokens * self.hidden_size)
