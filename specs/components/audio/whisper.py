"""Whisper: the encoder that listens, and the decoder that writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.audio.mel import MelSettings
from specs.components.base import Activation, Activations, Epsilon, Size, TransformerSizes

TokenId = Annotated[int, Field(ge=0)]


class WhisperEncoderComponent(TransformerSizes):
    """Whisper's encoder (Radford et al. 2022): samples -> log-mel -> two convolutions -> pre-norm layers.

    The graph takes samples in [-1, 1], of exactly `num_samples`, and makes the log-mel spectrogram itself.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation"})

    kind: Literal["audio.whisper"]
    num_mels: Size = Field(default=80, description="mel bands; 128 from large-v3 on")
    source_positions: Size = Field(default=1500, description="states of one chunk, each of two frames")
    sample_rate: Size = Field(default=16000, description="samples a second")
    fft_length: Size = Field(default=400, description="samples of a frame's window")
    hop_length: Size = Field(default=160, description="samples from one frame to the next")
    activation: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _check_mel(self) -> WhisperEncoderComponent:
        if self.sample_rate < 16000:
            raise ValueError(f"sample_rate {self.sample_rate} is below 16000, and the mel bands reach 8000 Hz")
        if self.fft_length < self.hop_length:
            raise ValueError("fft_length is shorter than hop_length, so samples would be skipped")
        if self.num_samples <= self.fft_length // 2:
            raise ValueError(f"a chunk of {self.num_samples} samples is too short to be mirrored for fft_length")
        return self

    @property
    def mel(self) -> MelSettings:
        return MelSettings(
            sample_rate=self.sample_rate,
            fft_length=self.fft_length,
            hop_length=self.hop_length,
            num_mels=self.num_mels,
            max_frequency=8000.0,
        )

    @property
    def num_frames(self) -> int:
        """Of the log-mel spectrogram; the second convolution halves them."""
        return 2 * self.source_positions

    @property
    def num_samples(self) -> int:
        """Of one chunk: 480000, which is 30 seconds, in every published model."""
        return self.num_frames * self.hop_length

    def count_layer_parameters(self) -> int:
        return super().count_layer_parameters() - self.hidden_size  # keys have no bias

    def count_parameters(self) -> int:
        c = self.hidden_size
        convolutions = 3 * c * (self.num_mels + c) + 2 * c
        return convolutions + self.source_positions * c + 2 * c + self.num_layers * self.count_layer_parameters()

    def count_macs(self, tokens: int) -> int:
        c, t = self.hidden_size, self.source_positions
        convolutions = 3 * c * (self.num_mels * self.num_frames + c * t)
        return self.mel.count_macs(self.num_frames) + convolutions + self.num_layers * self.count_layer_macs(t)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        spectrum = batch * self.num_frames * 3 * self.mel.num_frequencies
        layer = self.count_layer_activations(batch, self.source_positions)
        states = batch * self.source_positions * self.hidden_size
        return Activations(layer=max(spectrum, layer), interface=batch * self.num_samples + states)


class WhisperDecoderComponent(TransformerSizes):
    """Learned positions, pre-norm layers of self attention, cross attention and MLP (Radford et al. 2022).

    What is said to the decoder first is part of the model: it was trained on sequences that begin with `start_token`,
    the language, the task, and whether there are timestamps.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation", "tie_embeddings"})

    kind: Literal["text.whisper"]
    vocab_size: Size
    max_positions: Size = Field(default=448, description="tokens of one chunk's text, the first ones included")
    source_positions: Size = Field(default=1500, description="states of the encoder that cross attention reads")
    tie_embeddings: bool = True
    activation: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    start_token: TokenId = Field(default=0, description="the first token of every text")
    detect_language: bool = Field(
        default=False, description="the second token is the likeliest of language_tokens, by the decoder itself"
    )
    prompt_tokens: tuple[TokenId, ...] = Field(default=(), description="what follows: task, no timestamps")
    language_tokens: dict[str, TokenId] = Field(default_factory=dict, description="by what the vocabulary calls them")
    task_tokens: dict[str, TokenId] = Field(default_factory=dict, description="transcribe, translate")
    no_timestamps_token: TokenId | None = Field(default=None, description="timestamps are the tokens after it")
    end_tokens: tuple[TokenId, ...] = Field(default=(), description="each ends a text")
    max_new_tokens: Size | None = Field(
        default=None, description="of one chunk's text; as many as there are positions for when absent"
    )
    suppress_tokens: tuple[TokenId, ...] = Field(default=(), description="never chosen")
    begin_suppress_tokens: tuple[TokenId, ...] = Field(default=(), description="not chosen first")

    @model_validator(mode="after")
    def _check_tokens(self) -> WhisperDecoderComponent:
        groups: dict[str, tuple[int, ...]] = {
            "start_token": (self.start_token,),
            "language_tokens": tuple(self.language_tokens.values()),
            "task_tokens": tuple(self.task_tokens.values()),
            "no_timestamps_token": () if self.no_timestamps_token is None else (self.no_timestamps_token,),
            **{name: getattr(self, name) for name in ("prompt_tokens", "end_tokens")},
            **{name: getattr(self, name) for name in ("suppress_tokens", "begin_suppress_tokens")},
        }
        for name, tokens in groups.items():
            if any(token >= self.vocab_size for token in tokens):
                raise ValueError(f"{name} has {max(tokens)}, outside the vocabulary of {self.vocab_size}")
        if self.detect_language and not self.language_tokens:
            raise ValueError("detect_language needs language_tokens to choose among")
        if self.prompt_size >= self.max_positions:
            raise ValueError(f"the first {self.prompt_size} tokens leave no room in max_positions {self.max_positions}")
        return self

    @property
    def prompt_size(self) -> int:
        """Tokens before the first that is decoded."""
        return 1 + self.detect_language + len(self.prompt_tokens)

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads

    def count_layer_parameters(self) -> int:
        c = self.hidden_size
        attention = 4 * c * c + 3 * c  # keys have no bias
        return super().count_layer_parameters() - c + attention + 2 * c

    def count_parameters(self) -> int:
        c = self.hidden_size
        tables = self.vocab_size * c * (1 if self.tie_embeddings else 2) + self.max_positions * c
        return tables + 2 * c + self.num_layers * self.count_layer_parameters()

    def count_macs(self, tokens: int) -> int:
        c, s = self.hidden_size, self.source_positions
        cross = tokens * (2 * c * c + 2 * s * c) + s * 2 * c * c
        return self.num_layers * (self.count_layer_macs(tokens) + cross) + self.vocab_size * c

    def count_table(self) -> int:
        return (self.vocab_size + self.max_positions) * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes["tokens"]
        scores = batch * self.num_heads * tokens * self.source_positions
        layer = self.count_layer_activations(batch, tokens) + scores
        return Activations(layer=layer, interface=batch * (self.vocab_size + self.source_positions * self.hidden_size))

    def count_state(self, sizes: Mapping[str, int]) -> int:
        own, cross = 2 * sizes["cache"], self.source_positions  # in and out; in alone
        return 2 * self.num_layers * self.hidden_size * sizes["batch"] * (own + cross)
