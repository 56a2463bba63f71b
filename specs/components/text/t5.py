"""T5's text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Epsilon, Size
from specs.components.text.encoder import Pooling, TextEncoderComponent


class T5Component(TextEncoderComponent):
    """The encoder of T5 (Raffel et al. 2020): relative positions as a bias, RMSNorm, no bias anywhere.

    Version 1.1 and Flan have a gated MLP (`gated`, gelu_tanh) where the first one has ReLU; in umT5 each layer has
    its own bias.
    """

    STRUCTURE: ClassVar[frozenset[str]] = TextEncoderComponent.STRUCTURE | {"gated", "own_bias"}

    kind: Literal["text.t5"]
    head_dim: Size = Field(default=64, description="heads need not add up to hidden_size")
    activation: Activation = "relu"
    gated: bool = False
    num_buckets: Annotated[int, Field(ge=4, le=4096)] = Field(
        default=32, description="distances that the bias tells apart, half of them for each direction"
    )
    max_distance: Size = Field(default=128, description="all distances from here on share a bucket")
    layer_norm_eps: Epsilon = 1e-6
    own_bias: bool = Field(default=False, description="a bias for each layer, where T5 shares one")
    pooling: Pooling = "none"

    @model_validator(mode="after")
    def _check_buckets(self) -> T5Component:
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(f"max_distance {self.max_distance} must be more than num_buckets / 4")
        return self

    @property
    def inner_size(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def attention_width(self) -> int:
        return self.inner_size

    def count_layer_weights(self) -> int:
        return 4 * self.hidden_size * self.inner_size + (3 if self.gated else 2) * self.hidden_size * self.mlp_size

    def count_parameters(self) -> int:
        norms = self.hidden_size * (2 * self.num_layers + 1)
        layers = norms + self.num_layers * self.count_layer_weights()
        return self.count_table() + layers + self.count_head_parameters()

    def count_table(self) -> int:
        biases = self.num_buckets * self.num_heads * (self.num_layers if self.own_bias else 1)
        return self.vocab_size * self.hidden_size + biases

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes.get("tokens", sizes.get("text_tokens", 1))
        width = self.hidden_size + 3 * self.inner_size + (2 if self.gated else 1) * self.mlp_size
        layer = batch * tokens * width + batch * self.num_heads * tokens * tokens
        return Activations(layer=layer, interface=batch * tokens * (1 + self.hidden_size))
