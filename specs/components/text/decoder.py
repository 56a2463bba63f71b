"""Decoder-only language models: `text.decoder` is Llama and what grew from it; `text.gpt2`; `text.neox`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Component, Epsilon, LayerCount, Positive, Size, check_divides
from specs.components.text.dynamics import DynamicsSettings
from specs.components.text.rope import LongScaling, RopeScaling

Layers = tuple[Annotated[int, Field(ge=0)], ...]
#: The base of rotary positions: 10,000 first, up to 1e8 in models of long texts.
Theta = Annotated[float, Field(gt=1, le=1e12)]


class CausalComponent(Component):
    """What every decoder with a key/value cache has, whatever its layers are."""

    vocab_size: Size
    hidden_size: Size
    num_layers: LayerCount
    num_heads: Size
    tie_embeddings: bool = True
    max_positions: Size | None = Field(default=None, description="positions the model has; no end when absent")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values in the cache."""
        return self.num_heads

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_width(self) -> int:
        raise NotImplementedError

    def _count_layer_weights(self) -> int:
        """Weights of one layer that are multiplied with every token."""
        raise NotImplementedError

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_macs(self, tokens: int) -> int:
        attention = 2 * tokens * tokens * self.num_heads * self.head_width
        return self.num_layers * (tokens * self._count_layer_weights() + attention) + self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes["tokens"]
        width = max(self.hidden_size, self.num_heads * self.head_width)
        layer = batch * tokens * (4 * width + 2 * self.mlp_width) + batch * self.num_heads * tokens * tokens
        return Activations(layer=layer, interface=batch * self.vocab_size)

    def count_state(self, sizes: Mapping[str, int]) -> int:
        one_way = 2 * self.num_layers * self.kv_heads * self.head_width * sizes["cache"] * sizes["batch"]
        return 2 * one_way


class DecoderComponent(CausalComponent):
    """RMSNorm, rotary positions, grouped-query attention, a gated MLP: Llama 2 and after.

    The defaults are Llama 2's. Mistral adds `window`; Qwen 2 `qkv_bias`; Qwen 3 `qk_norm`; SmolLM 3 `nope_layers`;
    Phi 3 `rotary_share`; Gemma `norm_offset`, `embedding_scale` and `activation`; Gemma 2 `post_norms`,
    `full_layers`, `attention_scale`, `attention_softcap` and `logit_softcap`; Gemma 3 `window_rope_theta`.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {"kind", "tie_embeddings", "activation", "qkv_bias", "out_bias", "mlp_bias", "qk_norm", "post_norms"}
    )

    kind: Literal["text.decoder"]
    num_kv_heads: Size | None = Field(default=None, description="key and value heads; num_heads when absent")
    head_dim: Annotated[int, Field(ge=2, le=1 << 14, multiple_of=2)] | None = Field(
        default=None, description="hidden_size / num_heads when absent"
    )
    mlp_size: Size
    activation: Activation = Field(default="silu", description="of the gate")
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = Field(default=False, description="RMSNorm over each head's query and key, before the rotation")
    rope_theta: Theta = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_share: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="of a head's channels")
    nope_layers: Layers = Field(default=(), description="layers without positions")
    window: Size | None = Field(default=None, description="a token sees so many, itself included; all when absent")
    full_layers: Layers = Field(default=(), description="layers that see everything in spite of `window`")
    window_rope_theta: Theta | None = Field(
        default=None, description="rope_theta of the layers with a window, which are then not scaled"
    )
    attention_scale: Positive | None = Field(default=None, description="1 / sqrt(head_dim) when absent")
    attention_softcap: Positive | None = Field(default=None, description="scores s become c tanh(s / c)")
    logit_softcap: Positive | None = Field(default=None, description="logits x become c tanh(x / c)")
    embedding_scale: Positive | None = Field(default=None, description="token embeddings are multiplied by it")
    norm_offset: bool = Field(default=False, description="norms multiply by 1 + weight")
    post_norms: bool = Field(default=False, description="norms after attention and MLP too")
    rms_norm_eps: Epsilon = 1e-5
    dynamics: DynamicsSettings | None = Field(default=None, description="a damped pull on the last hidden state")

    @model_validator(mode="after")
    def _check_heads(self) -> DecoderComponent:
        if self.head_dim is None:
            check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
            if (self.hidden_size // self.num_heads) % 2:
                raise ValueError("hidden_size / num_heads must be even: rotary positions turn pairs of channels")
        check_divides(self.num_heads, self.kv_heads, size_name="num_heads", heads_name="num_kv_heads")
        check_rotation(self.rotary_width, self.rope_scaling)
        return self

    @model_validator(mode="after")
    def _check_layers(self) -> DecoderComponent:
        for key in ("nope_layers", "full_layers"):
            if any(layer >= self.num_layers for layer in getattr(self, key)):
                raise ValueError(f"{key} names a layer from num_layers={self.num_layers} on; they are counted from 0")
        if self.window is None and (self.full_layers or self.window_rope_theta):
            raise ValueError("full_layers and window_rope_theta belong to a window, and there is none")
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_size

    @property
    def rotary_width(self) -> int:
        """Channels of a head that are turned by its position."""
        return int(self.head_width * self.rotary_share)

    def window_of(self, layer: int) -> int:
        """How many tokens a token of this layer sees; 0 for all."""
        return 0 if layer in self.full_layers else self.window or 0

    def _count_layer_weights(self) -> int:
        attention = self.hidden_size * self.head_width * 2 * (self.num_heads + self.kv_heads)
        return attention + 3 * self.hidden_size * self.mlp_size

    def count_parameters(self) -> int:
        c, d, h, k = self.hidden_size, self.head_width, self.num_heads, self.kv_heads
        norms = c * (4 if self.post_norms else 2) + (2 * d if self.qk_norm else 0)
        biases = d * (h + 2 * k) * self.qkv_bias + c * self.out_bias + (2 * self.mlp_size + c) * self.mlp_bias
        embeddings = self.vocab_size * c * (1 if self.tie_embeddings else 2)
        pull = self.dynamics.count_parameters(c) if self.dynamics else 0
        return embeddings + c + pull + self.num_layers * (norms + biases + self._count_layer_weights())


class Gpt2Component(CausalComponent):
    """LayerNorm, learned positions, multi-head attention and an MLP, all with biases (Radford et al. 2019)."""

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "tie_embeddings", "activation"})

    kind: Literal["text.gpt2"]
    max_positions: Size
    mlp_size: Size | None = Field(default=None, description="width of the MLP; 4 * hidden_size when absent")
    activation: Activation = "gelu_tanh"
    layer_norm_eps: Epsilon = 1e-5
    scale_attention: bool = Field(default=True, description="divide scores by sqrt(head dim)")
    scale_by_layer: bool = Field(default=False, description="divide the scores of layer i by i + 1 (Mistral-GPT2)")

    @model_validator(mode="after")
    def _check_heads(self) -> Gpt2Component:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    def _count_layer_weights(self) -> int:
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.mlp_width

    def count_parameters(self) -> int:
        c = self.hidden_size
        vectors = 4 * c + 4 * c + self.mlp_width + c
        tables = (self.vocab_size * (1 if self.tie_embeddings else 2) + self.max_positions) * c
        return tables + 2 * c + self.num_layers * (self._count_layer_weights() + vectors)


class NeoxComponent(CausalComponent):
    """LayerNorm with biases, rotary positions on a share of each head, both halves side by side (Black et al. 2022)."""

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "tie_embeddings", "activation", "attention_bias"})

    kind: Literal["text.neox"]
    mlp_size: Size | None = Field(default=None, description="width of the MLP; 4 * hidden_size when absent")
    activation: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_bias: bool = True
    parallel: bool = Field(default=True, description="attention and MLP read the same hidden states")
    rope_theta: Theta = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_share: Annotated[float, Field(gt=0, le=1)] = Field(default=0.25, description="of a head's channels")

    @model_validator(mode="after")
    def _check_heads(self) -> NeoxComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        check_rotation(self.rotary_width, self.rope_scaling)
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    @property
    def rotary_width(self) -> int:
        """Channels of a head that are turned by its position."""
        return int(self.head_width * self.rotary_share)

    def _count_layer_weights(self) -> int:
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.mlp_width

    def count_parameters(self) -> int:
        c = self.hidden_size
        vectors = 4 * c + 4 * c * self.attention_bias + self.mlp_width + c
        tables = self.vocab_size * (1 if self.tie_embeddings else 2) * c
        return tables + 2 * c + self.num_layers * (self._count_layer_weights() + vectors)


def check_rotation(width: int, scaling: RopeScaling | None) -> None:
    """ValueError unless so many channels of a head can be turned in pairs, each with its factor."""
    if width < 2 or width % 2:
        raise ValueError(f"rotary_share gives {width} channels; an even number from 2 is needed")
    factors, pairs = getattr(scaling, "factors", ()), width // 2
    if isinstance(scaling, LongScaling) and len(factors) != pairs:
        raise ValueError(f"rope_scaling has {len(factors)} factors for {pairs} pairs of channels")
