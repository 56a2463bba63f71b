"""Components that read or write text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from specs.components.base import (
    Activation,
    Activations,
    Size,
    TransformerSizes,
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
