"""What encoders of text have in common: features of tokens become one vector. BERT and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import (
    Activation,
    Activations,
    Component,
    Epsilon,
    LayerCount,
    Size,
    check_divides,
)

Pooling = Literal["none", "class", "mean", "mean_sqrt_length", "weighted_mean", "max", "last"]


class TextEncoderComponent(Component):
    """Tokens -> layers -> pooled -> [pooler] -> [projection] -> [unit length] -> embedding."""

    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {"kind", "activation", "pooling", "pooler_activation", "projection_bias", "projection_activation", "normalise"}
    )

    vocab_size: Size
    hidden_size: Size = Field(description="width of the residual stream")
    num_layers: LayerCount
    num_heads: Size
    mlp_size: Size
    pooling: Pooling = Field(
        default="mean",
        description="one vector of the valid tokens: the first, the last, their mean, their sum by the root of their"
        " number, their mean by position, their maximum; none: no embedding",
    )
    pooler_size: Size | None = Field(default=None, description="width of a Linear with an activation after pooling")
    pooler_activation: Activation = "tanh"
    projection_size: Size | None = Field(default=None, description="width of another Linear, after that")
    projection_bias: bool = False
    projection_activation: Activation | None = None
    normalise: bool = Field(default=False, description="whether the embedding has unit length")

    @model_validator(mode="after")
    def _check_pooling(self) -> TextEncoderComponent:
        if self.pooling == "none" and (self.pooler_size or self.projection_size or self.normalise):
            raise ValueError("pooler_size, projection_size and normalise need an embedding, and pooling is 'none'")
        return self

    @property
    def longest(self) -> int | None:
        """The largest number of tokens; None where nothing limits it."""
        return None

    @property
    def feature_size(self) -> int:
        """Width of the embedding."""
        return self.projection_size or self.pooler_size or self.hidden_size

    @property
    def attention_width(self) -> int:
        """Channels of all heads."""
        return self.hidden_size

    def count_head_parameters(self) -> int:
        """Of what follows pooling."""
        pooled = self.pooler_size or self.hidden_size
        pooler = (self.hidden_size + 1) * (self.pooler_size or 0)
        return pooler + (pooled + self.projection_bias) * (self.projection_size or 0)

    def count_layer_weights(self) -> int:
        """Of one layer, without biases and norms."""
        raise NotImplementedError

    def count_macs(self, tokens: int) -> int:
        attention = 2 * tokens * tokens * self.attention_width
        return self.num_layers * (tokens * self.count_layer_weights() + attention) + self.count_head_parameters()

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes["tokens"]
        width = 4 * max(self.hidden_size, self.attention_width) + 2 * self.mlp_size
        scores = 2 * batch * self.num_heads * tokens * tokens
        return Activations(
            layer=batch * tokens * width + scores, interface=batch * (tokens * (self.hidden_size + 1) + 1)
        )


class BertComponent(TextEncoderComponent):
    """BERT (Devlin et al. 2018), and what differs from it by tables only: RoBERTa, DistilBERT, MPNet, MiniLM.

    Post-norm: x = norm(x + attention(x)); x = norm(x + mlp(x)).
    """

    STRUCTURE: ClassVar[frozenset[str]] = TextEncoderComponent.STRUCTURE | {"token_type", "relative_buckets"}

    kind: Literal["text.bert"]
    context_length: Size = Field(description="positions that the table has")
    activation: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-12
    token_type: bool = Field(default=True, description="whether every token gets the vector of the first segment")
    relative_buckets: Annotated[int, Field(ge=0, multiple_of=2, le=1 << 16)] = Field(
        default=0, description="buckets of a bias by distance, shared by all layers (MPNet: 32)"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> BertComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def longest(self) -> int | None:
        return self.context_length

    def count_layer_weights(self) -> int:
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.mlp_size

    def count_parameters(self) -> int:
        c = self.hidden_size
        tables = (self.vocab_size + self.context_length + self.token_type + 2) * c
        layer = self.count_layer_weights() + 9 * c + self.mlp_size
        bias = self.relative_buckets * self.num_heads
        return tables + self.num_layers * layer + bias + self.count_head_parameters()
