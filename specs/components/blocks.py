"""Components of the block generator: one shared decoder, and for each mode what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Epsilon, Size, TransformerSizes
from specs.components.costs import Cost, cost_linear
from specs.components.measured import MeasuredComponent


class BlockDecoderComponent(TransformerSizes):
    """The decoder that all blocks share: pre-norm layers over a key/value cache, without positions of its own."""

    kind: Literal["blocks.decoder"]
    activation: Activation = "gelu_tanh"
    layer_norm_eps: Epsilon = 1e-5

    #: What `specs.models.text.gpt2.Gpt2Layer` asks of its configuration beside the sizes.
    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def scale_attention(self) -> bool:
        return True

    @property
    def scale_by_layer(self) -> bool:
        return False

    def count_parameters(self) -> int:
        return self.num_layers * self.count_layer_parameters() + 2 * self.hidden_size

    def count_macs(self, tokens: int) -> int:
        return self.num_layers * self.count_layer_macs(tokens)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes["tokens"]
        layer = self.count_layer_activations(batch, tokens)
        return Activations(layer=layer, interface=batch * tokens * self.hidden_size)

    def count_state(self, sizes: Mapping[str, int]) -> int:
        return 2 * 2 * self.num_layers * self.hidden_size * sizes["cache"] * sizes["batch"]


class StructureComponent(MeasuredComponent):
    """What comes next: which mode, and how large in each of its dimensions; an embedding and two heads."""

    kind: Literal["blocks.structure"]
    hidden_size: Size
    num_modes: Size = Field(description="modes of the spec, in the order of its components")
    max_size: Size = Field(description="largest size of any dimension of any block")

    @property
    def vocab_size(self) -> int:
        """Start of the stream, the modes, the sizes."""
        return 1 + self.num_modes + self.max_size

    def measure(self) -> Cost:
        """Embedding, mode head (one more: the end), size head."""
        table = Cost(self.vocab_size * self.hidden_size)
        return table + cost_linear(self.hidden_size, self.num_modes + 1) + cost_linear(self.hidden_size, self.max_size)

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        return Activations(layer=0, interface=sizes["batch"] * (self.hidden_size + self.vocab_size))


class ModeComponent(MeasuredComponent):
    """One mode: a vocabulary of its own, its embedding and its head.

    `blocks.text`: blocks of shape [length]. `blocks.image`: blocks of shape [height, width], row by row; a token is a
    grey level here, and a codebook's entry behind a tokenizer of pictures.
    """

    kind: Literal["blocks.text", "blocks.image"]
    hidden_size: Size
    vocab_size: Size
    max_shape: tuple[Size, ...] = Field(min_length=1, max_length=2, description="largest size of each dimension")

    @model_validator(mode="after")
    def _check_dims(self) -> ModeComponent:
        if len(self.max_shape) != self.num_dims:
            raise ValueError(f"max_shape of {self.kind} needs {self.num_dims} numbers, got {len(self.max_shape)}")
        return self

    @property
    def num_dims(self) -> int:
        """Dimensions of a block of this kind of mode."""
        return 1 if self.kind == "blocks.text" else 2

    def measure(self) -> Cost:
        """Embedding and head."""
        return Cost(self.vocab_size * self.hidden_size) + cost_linear(self.hidden_size, self.vocab_size)

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        return Activations(layer=0, interface=sizes["batch"] * (self.hidden_size + self.vocab_size))
