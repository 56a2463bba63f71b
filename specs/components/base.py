"""What every kind of component has in common: sizes as frozen values, and the arithmetic that needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Far beyond any model of today, so that a slip of the finger is an error here and not hours later.
Size = Annotated[int, Field(ge=1, le=1 << 20)]
MOST_LAYERS = 1024
LayerCount = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
#: A factor, a scale, a temperature: what float32 multiplies and divides by without leaving its range.
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]


class Activations(NamedTuple):
    """Values (not bytes) that a forward of the whole batch holds at its widest place."""

    layer: int  # in the graph's own precision
    interface: int  # inputs and outputs, float32


class Component(BaseModel):
    """One entry of a spec's `components`; `kind` picks the subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    #: Options that change a tensor's rank or which layers exist; a variant may not override them. It may say who
    #: prepares pictures (`preprocess`), which changes no weight.
    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind"})

    def count_parameters(self) -> int:
        """Trainable parameters of the module built from this, tied tensors counted once."""
        raise NotImplementedError

    def count_macs(self, tokens: int) -> int:
        """Multiply-accumulates of one forward of one sample; `tokens` counts where text has no fixed length."""
        raise NotImplementedError

    def count_table(self) -> int:
        """Parameters that are looked up instead of multiplied, and so never quantised."""
        return 0

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        """What a forward holds when the spec's dims have these sizes."""
        raise NotImplementedError

    def count_state(self, sizes: Mapping[str, int]) -> int:
        """float32 values that a host carries from one call to the next (a KV cache), in and out."""
        return 0


def check_divides(size: int, heads: int, *, size_name: str, heads_name: str) -> None:
    """ValueError with the nearest allowed values unless `heads` divides `size`."""
    if size % heads:
        allowed = [h for h in range(1, min(size, 4 * heads) + 1) if size % h == 0]
        near = sorted(sorted(allowed, key=lambda h: abs(h - heads))[:5])
        raise ValueError(
            f"{heads_name} {heads} does not divide {size_name} {size}; nearest that do: {', '.join(map(str, near))}"
        )


class TransformerSizes(Component):
    """What every transformer with biased LayerNorm, attention and a two-Linear MLP shares."""

    hidden_size: Size = Field(description="width of the residual stream")
    num_layers: LayerCount
    num_heads: Size
    mlp_size: Size | None = Field(default=None, description="width of the MLP; 4 * hidden_size when absent")
    layer_norm_eps: Epsilon = 1e-6

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerSizes:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    def count_layer_parameters(self) -> int:
        """Of one layer: fused qkv and output with biases, MLP with biases, two LayerNorms."""
        c, f = self.hidden_size, self.mlp_width
        return (4 * c * c + 4 * c) + (2 * c * f + f + c) + 4 * c

    def count_layer_macs(self, tokens: int) -> int:
        """Of one layer over `tokens` tokens of one sample."""
        c, f = self.hidden_size, self.mlp_width
        return tokens * (4 * c * c + 2 * c * f) + 2 * tokens * tokens * c

    def count_layer_activations(self, batch: int, tokens: int) -> int:
        """Queries, keys, values, residual, MLP, and the attention scores (though a fused kernel never writes them)."""
        return batch * tokens * (4 * self.hidden_size + self.mlp_width) + batch * self.num_heads * tokens * tokens
