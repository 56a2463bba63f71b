"""EnCodec: a neural codec for sound. Codes of a residual vector quantiser, and SEANet networks around them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, Size

Ratios = Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1, max_length=16)]
NormType = Literal["weight_norm", "time_group_norm"]
PadMode = Literal["reflect", "constant", "replicate"]


class Convolution(NamedTuple):
    """Sizes of one convolution, and how many positions it computes for one frame of codes."""

    inputs: int
    outputs: int
    kernel: int
    positions: int


class EncodecComponent(Component):
    """EnCodec (Défossez et al. 2022), at 24 kHz, 48 kHz or as MusicGen's 32 kHz codec.

    `audio.encodec_decoder` turns codes into samples; `audio.encodec` also turns samples into codes. One frame is a code
    of each codebook, and as many samples as the product of `upsampling_ratios`.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {"kind", "audio_channels", "norm_type", "causal", "pad_mode", "conv_shortcut"}
    )

    kind: Literal["audio.encodec", "audio.encodec_decoder"]
    sample_rate_hz: Size = 24000
    audio_channels: Annotated[int, Field(ge=1, le=2)] = 1
    num_codebooks: Size = Field(description="quantisers, one after another on what the one before left over")
    codebook_size: Size = 1024
    hidden_size: Size = Field(default=128, description="width of a code's vector")
    num_filters: Size = Field(default=32, description="channels beside the samples; each ratio doubles them")
    num_residual_layers: Annotated[int, Field(ge=0, le=64)] = 1
    upsampling_ratios: Ratios = (8, 5, 4, 2)
    norm_type: NormType = Field(default="weight_norm", description="weight_norm is folded into the weights")
    kernel_size: Size = 7
    last_kernel_size: Size = 7
    residual_kernel_size: Size = 3
    dilation_growth_rate: Size = 2
    compress: Size = Field(default=2, description="how much narrower a residual branch is inside")
    num_lstm_layers: Annotated[int, Field(ge=1, le=64)] = 2
    causal: bool = True
    pad_mode: PadMode = "reflect"
    trim_right_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="share of a causal transposed convolution's surplus that is cut on the right"
    )
    conv_shortcut: bool = Field(default=True, description="a convolution around a residual branch, else nothing")

    @model_validator(mode="after")
    def _check_sizes(self) -> EncodecComponent:
        if not self.causal and self.trim_right_ratio != 1.0:
            raise ValueError("trim_right_ratio belongs to a causal codec")
        if self.compress > self.num_filters:
            raise ValueError(f"compress {self.compress} leaves nothing of num_filters {self.num_filters}")
        return self

    @property
    def hop_length(self) -> int:
        """Samples of one frame."""
        return math.prod(self.upsampling_ratios)

    @property
    def widest(self) -> int:
        """Channels beside the codes."""
        return self.num_filters << len(self.upsampling_ratios)

    @property
    def has_encoder(self) -> bool:
        return self.kind == "audio.encodec"

    def list_encoder(self) -> Iterator[Convolution]:
        """The encoder's convolutions in order."""
        width, positions = self.num_filters, self.hop_length
        yield Convolution(self.audio_channels, width, self.kernel_size, positions)
        for ratio in reversed(self.upsampling_ratios):
            yield from self._list_residuals(width, positions)
            positions //= ratio
            yield Convolution(width, 2 * width, 2 * ratio, positions)
            width *= 2
        yield Convolution(self.widest, self.hidden_size, self.last_kernel_size, 1)

    def list_decoder(self) -> Iterator[Convolution]:
        """The decoder's convolutions, transposed ones too, in order."""
        yield Convolution(self.hidden_size, self.widest, self.kernel_size, 1)
        width, positions = self.widest, 1
        for ratio in self.upsampling_ratios:
            yield Convolution(width, width // 2, 2 * ratio, positions)
            width, positions = width // 2, positions * ratio
            yield from self._list_residuals(width, positions)
        yield Convolution(self.num_filters, self.audio_channels, self.last_kernel_size, positions)

    def _list_residuals(self, width: int, positions: int) -> Iterator[Convolution]:
        inner = width // self.compress
        for _ in range(self.num_residual_layers):
            yield Convolution(width, inner, self.residual_kernel_size, positions)
            yield Convolution(inner, width, 1, positions)
            if self.conv_shortcut:
                yield Convolution(width, width, 1, positions)

    def _list_convolutions(self) -> Iterator[Convolution]:
        yield from self.list_decoder()
        if self.has_encoder:
            yield from self.list_encoder()

    def _count_lstm(self) -> int:
        """Weights of the LSTM layers on both sides."""
        return self._count_lstm_layers() * 8 * self.widest * self.widest

    def _count_lstm_layers(self) -> int:
        return self.num_lstm_layers * (2 if self.has_encoder else 1)

    def count_parameters(self) -> int:
        affine = 3 if self.norm_type == "time_group_norm" else 1
        convolutions = sum(c.inputs * c.outputs * c.kernel + affine * c.outputs for c in self._list_convolutions())
        return self.count_table() + convolutions + self._count_lstm() + self._count_lstm_layers() * 8 * self.widest

    def count_macs(self, tokens: int) -> int:
        """`tokens` counts frames."""
        per_frame = sum(c.inputs * c.outputs * c.kernel * c.positions for c in self._list_convolutions())
        return tokens * (per_frame + self._count_lstm())

    def count_table(self) -> int:
        return self.num_codebooks * self.codebook_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        rows = sizes["batch"] * sizes["frames"]
        widest = max(2 * c.outputs * c.positions for c in self._list_convolutions())
        codes, samples = self.num_codebooks, self.audio_channels * self.hop_length
        return Activations(layer=rows * widest, interface=rows * (codes + samples))
