"""MusicGen's decoder: codes of several codebooks at once, with a text to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Epsilon, Size, TransformerSizes


class MusicgenComponent(TransformerSizes):
    """The decoder of MusicGen (Copet et al. 2023).

    A step reads one code of each codebook and writes logits for the next ones. Codebook k is delayed by k steps; the
    start token, beside the codes, fills the gaps. Both is for the host loop.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation", "audio_channels"})

    kind: Literal["audio.musicgen"]
    vocab_size: Size = Field(description="codes of a codebook; the embedding has one row more, the start token's")
    num_codebooks: Annotated[int, Field(ge=1, le=64)] = Field(default=4, description="of all channels together")
    audio_channels: Annotated[int, Field(ge=1, le=2)] = Field(
        default=1, description="2: codebooks of left and right take turns"
    )
    text_size: Size = Field(description="width of the text's states; a Linear where it is not hidden_size")
    activation: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    guidance_scale: Annotated[float, Field(ge=1, le=100)] = Field(
        default=3.0, description="how far the text pulls away from no text; 1: one pass a step instead of two"
    )

    @model_validator(mode="after")
    def _check_channels(self) -> MusicgenComponent:
        if self.num_codebooks % self.audio_channels:
            raise ValueError(f"num_codebooks {self.num_codebooks} is not a multiple of audio_channels")
        return self

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def has_projection(self) -> bool:
        return self.text_size != self.hidden_size

    @property
    def channel_codebooks(self) -> int:
        """Codebooks of one channel: what the codec reads."""
        return self.num_codebooks // self.audio_channels

    def _count_layer_weights(self) -> int:
        return 8 * self.hidden_size * self.hidden_size + 2 * self.hidden_size * self.mlp_width

    def _count_head(self) -> int:
        return self.num_codebooks * self.vocab_size * self.hidden_size

    def count_parameters(self) -> int:
        projection = (self.text_size + 1) * self.hidden_size if self.has_projection else 0
        norms = 2 * self.hidden_size * (3 * self.num_layers + 1)
        layers = self.num_layers * self._count_layer_weights()
        return self.count_table() + projection + layers + norms + self._count_head()

    def count_macs(self, tokens: int) -> int:
        """Of a prompt of `tokens` frames, over a text of 32 tokens."""
        text = 32
        attention = 2 * tokens * (tokens + text) * self.hidden_size
        return self.num_layers * (tokens * self._count_layer_weights() + attention) + self._count_head()

    def count_table(self) -> int:
        return self.num_codebooks * (self.vocab_size + 1) * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, frames, text = sizes["batch"], sizes["prompt_frames"], sizes["text_tokens"]
        layer = self.count_layer_activations(batch, frames) + batch * self.num_heads * frames * text
        logits = self.num_codebooks * self.vocab_size
        return Activations(layer=layer, interface=batch * (logits + text * self.text_size))

    def count_state(self, sizes: Mapping[str, int]) -> int:
        """The cache of the frames, in and out, and the text's keys and values, in."""
        slots = 2 * sizes["cache"] + sizes["text_tokens"]
        return 2 * self.num_layers * self.hidden_size * slots * sizes["batch"]
