"""Components that read or write text."""

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
    TransformerSizes,
    check_divides,
)


class ClipTextComponent(TransformerSizes):
    """CLIP's text tower: causal, learned positions, features at the end-of-text token (the largest id)."""

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation"})

    kind: Literal["text.clip"]
    vocab_size: Size
    context_length: Size = Field(description="tokens a text is padded to")
    activation: Activation = "quick_gelu"

    def count_parameters(self) -> int:
        c = self.hidden_size
        return (self.vocab_size + self.context_length + 2) * c + self.num_layers * self.count_layer_parameters()

    def count_macs(self, tokens: int) -> int:
        return self.num_layers * self.count_layer_macs(self.context_length)

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(
            layer=self.count_layer_activations(batch, self.context_length), interface=batch * self.context_length
        )


class DecoderComponent(Component):
    """A decoder-only language model: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Llama 2 and after)."""

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "tie_embeddings"})

    kind: Literal["text.decoder"]
    vocab_size: Size
    hidden_size: Size
    num_layers: LayerCount
    num_heads: Size
    num_kv_heads: Size | None = Field(default=None, description="key and value heads; num_heads when absent")
    head_dim: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(
        default=None, description="hidden_size / num_heads when absent"
    )
    mlp_size: Size
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    rms_norm_eps: Epsilon = 1e-5
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _check_heads(self) -> DecoderComponent:
        if self.head_dim is None:
            check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
            if (self.hidden_size // self.num_heads) % 2:
                raise ValueError("hidden_size / num_heads must be even: rotary positions turn pairs of channels")
        check_divides(self.num_heads, self.kv_heads, size_name="num_heads", heads_name="num_kv_heads")
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    def _count_layer_weights(self) -> int:
        attention = self.hidden_size * self.head_width * 2 * (self.num_heads + self.kv_heads)
        return attention + 3 * self.hidden_size * self.mlp_size

    def count_parameters(self) -> int:
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        norms = self.hidden_size * (2 * self.num_layers + 1)
        return embeddings + norms + self.num_layers * self._count_layer_weights()

    def count_macs(self, tokens: int) -> int:
        attention = 2 * tokens * tokens * self.num_heads * self.head_width
        return self.num_layers * (tokens * self._count_layer_weights() + attention) + self.vocab_size * self.hidden_size

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes["tokens"]
        width = max(self.hidden_size, self.num_heads * self.head_width)
        layer = batch * tokens * (4 * width + 2 * self.mlp_size) + batch * self.num_heads * tokens * tokens
        return Activations(layer=layer, interface=batch * self.vocab_size)

    def count_state(self, sizes: Mapping[str, int]) -> int:
        one_way = 2 * self.num_layers * self.kv_heads * self.head_width * sizes["cache"] * sizes["batch"]
        return 2 * one_way
