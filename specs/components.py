"""The kinds of component a spec can name, as frozen configurations.

A configuration knows its sizes and counts its parameters without torch, so that `show` and the target check run on
any machine; `specs/models/` holds the modules built from them, and a test compares the two counts.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Far beyond any model of today, so that a slip of the finger is an error here and not hours later.
Size = Annotated[int, Field(ge=1, le=1 << 20)]
LayerCount = Annotated[int, Field(ge=1, le=1024)]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class Component(BaseModel):
    """One entry of a spec's `components`; `kind` picks the subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    #: Options that change a tensor's rank, a graph's inputs or which layers exist; a variant may not override them.
    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind"})

    def count_parameters(self) -> int:
        """Trainable parameters of the module built from this, tied tensors counted once."""
        raise NotImplementedError

    def count_macs(self, tokens: int) -> int:
        """Multiply-accumulates of one forward of one sample; `tokens` counts where text has no fixed length."""
        raise NotImplementedError


def _check_divides(size: int, heads: int, *, size_name: str, heads_name: str) -> None:
    if size % heads:
        allowed = [h for h in range(1, min(size, 4 * heads) + 1) if size % h == 0]
        near = sorted(sorted(allowed, key=lambda h: abs(h - heads))[:5])
        raise ValueError(
            f"{heads_name} {heads} does not divide {size_name} {size}; nearest that do: {', '.join(map(str, near))}"
        )


class _TransformerSizes(Component):
    """What every pre-norm transformer with biased LayerNorm and MLP shares."""

    hidden_size: Size = Field(description="width of the residual stream")
    num_layers: LayerCount
    num_heads: Size
    mlp_size: Size | None = Field(default=None, description="width of the MLP; 4 * hidden_size when absent")
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6

    @model_validator(mode="after")
    def _check_heads(self) -> _TransformerSizes:
        _check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    def _count_layer_parameters(self) -> int:
        c, f = self.hidden_size, self.mlp_width
        return (4 * c * c + 4 * c) + (2 * c * f + f + c) + 4 * c

    def _count_layer_macs(self, tokens: int) -> int:
        c, f = self.hidden_size, self.mlp_width
        return tokens * (4 * c * c + 2 * c * f) + 2 * tokens * tokens * c


class VisionTransformerComponent(_TransformerSizes):
    """A vision transformer: patches, a class token, learned positions, pre-norm layers.

    The graph takes RGB (or grey) pixels as float32 in [0, 1] and normalises them itself, so that an edge app hands
    over raw pixels. `vision.vit` ends in class logits (Dosovitskiy et al. 2020), `vision.clip` in the normalised
    class token (Radford et al. 2021: an extra LayerNorm before the layers, no patch bias, quick GELU).
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation", "num_channels"})

    kind: Literal["vision.vit", "vision.clip"]
    image_size: Size = Field(description="height and width in pixels")
    patch_size: Size = Field(description="height and width of a patch in pixels")
    num_channels: Size = 3
    num_classes: Size | None = Field(default=None, description="width of the logits; required by vision.vit")
    activation: Activation | None = Field(default=None, description="gelu for vision.vit, quick_gelu for vision.clip")
    image_mean: tuple[float, ...] = Field(default=(0.5,), description="per channel, or one for all")
    image_std: tuple[float, ...] = Field(default=(0.5,), description="per channel, or one for all")

    @model_validator(mode="after")
    def _check_image(self) -> VisionTransformerComponent:
        _check_divides(self.image_size, self.patch_size, size_name="image_size", heads_name="patch_size")
        if (self.kind == "vision.vit") != (self.num_classes is not None):
            raise ValueError("num_classes belongs to vision.vit, which needs it, and to no other kind")
        for key in ("image_mean", "image_std"):
            if len(getattr(self, key)) not in (1, self.num_channels):
                raise ValueError(f"{key} needs 1 or num_channels={self.num_channels} numbers")
        if any(std <= 0 for std in self.image_std):
            raise ValueError("image_std must be positive")
        return self

    @property
    def resolved_activation(self) -> Activation:
        return self.activation or ("quick_gelu" if self.kind == "vision.clip" else "gelu")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def count_parameters(self) -> int:
        c = self.hidden_size
        patch = self.num_channels * self.patch_size**2 * c + (0 if self.kind == "vision.clip" else c)
        positions = (self.num_patches + 1) * c + c
        norms = 2 * c * (2 if self.kind == "vision.clip" else 1)
        head = (c + 1) * self.num_classes if self.num_classes else 0
        return patch + positions + norms + head + self.num_layers * self._count_layer_parameters()

    def count_macs(self, tokens: int) -> int:
        patch = self.num_patches * self.num_channels * self.patch_size**2 * self.hidden_size
        head = self.hidden_size * (self.num_classes or 0)
        return patch + head + self.num_layers * self._count_layer_macs(self.num_patches + 1)


class ClipTextComponent(_TransformerSizes):
    """CLIP's text tower: causal, learned positions, features at the end-of-text token (the largest id)."""

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation"})

    kind: Literal["text.clip"]
    vocab_size: Size
    context_length: Size = Field(description="tokens a text is padded to")
    activation: Activation = "quick_gelu"

    def count_parameters(self) -> int:
        c = self.hidden_size
        return (self.vocab_size + self.context_length + 2) * c + self.num_layers * self._count_layer_parameters()

    def count_macs(self, tokens: int) -> int:
        return self.num_layers * self._count_layer_macs(self.context_length)


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
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _check_heads(self) -> DecoderComponent:
        if self.head_dim is None:
            _check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
            if (self.hidden_size // self.num_heads) % 2:
                raise ValueError("hidden_size / num_heads must be even: rotary positions turn pairs of channels")
        _check_divides(self.num_heads, self.kv_heads, size_name="num_heads", heads_name="num_kv_heads")
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

    def count_cache_bytes(self, tokens: int, bytes_per_value: int) -> int:
        """Key and value cache of one sequence."""
        return 2 * self.num_layers * self.kv_heads * self.head_width * tokens * bytes_per_value


class FusionComponent(Component):
    """Joins the features of two towers.

    `fusion.late`: a projection each, normalised, and their scaled similarity (Radford et al. 2021).
    `fusion.gated`: a learned sigmoid gate blends the projections (Arevalo et al. 2017).
    `fusion.attention`: softmax weights over the modalities that are present, with a temperature.
    """

    kind: Literal["fusion.late", "fusion.gated", "fusion.attention"]
    projection_size: Size
    temperature: Annotated[float, Field(gt=0)] = Field(default=1.0, description="of fusion.attention's softmax")

    @model_validator(mode="after")
    def _check_temperature(self) -> FusionComponent:
        if self.kind != "fusion.attention" and self.temperature != 1.0:
            raise ValueError(f"temperature belongs to fusion.attention, and {self.kind} does not use it")
        return self

    def count_parameters(self) -> int:
        raise NotImplementedError("a fusion's parameters depend on its towers: see specs.graphs.count_parameters")


#: kind -> configuration; the one place where kinds are listed.
COMPONENTS: dict[str, type[Component]] = {
    "vision.vit": VisionTransformerComponent,
    "vision.clip": VisionTransformerComponent,
    "text.clip": ClipTextComponent,
    "text.decoder": DecoderComponent,
    "fusion.late": FusionComponent,
    "fusion.gated": FusionComponent,
    "fusion.attention": FusionComponent,
}
