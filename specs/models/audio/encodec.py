"""EnCodec (Défossez et al. 2022): samples -> vectors, codes -> samples.

    samples -> convolution -> for each ratio, the last one first: residual units -> elu -> strided convolution
            -> LSTM -> elu -> convolution -> vectors
    codes   -> sum of the codebooks' vectors -> convolution -> LSTM
            -> for each ratio: elu -> transposed convolution -> residual units -> elu -> convolution -> samples

A residual vector quantiser lies between the two: the code of codebook q is the vector nearest to what the codebooks
before it left over. It is for the host, in float32: a rounded vector would have another code, and all after it too.

Shape letters: B batch, Q codebooks, F frames, C channels, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components.audio.encodec import EncodecComponent
from specs.models.audio.seanet import Convolution, ResidualLstm, ResidualUnit, StridedConvolution, TransposedConvolution


class Upsampling(nn.Module):
    """Elu, a transposed convolution that halves the channels, and residual units of growing dilation."""

    def __init__(self, config: EncodecComponent, width: int, ratio: int, *, shortest: int) -> None:
        super().__init__()
        self.conv = TransposedConvolution(config, width, width // 2, ratio)
        self.units = nn.ModuleList(
            ResidualUnit(config, width // 2, dilation=config.dilation_growth_rate**index, shortest=shortest)
            for index in range(config.num_residual_layers)
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = self.conv(functional.elu(x_BCT))
        for unit in self.units:
            x_BCT = unit(x_BCT)
        return x_BCT


class SeanetDecoder(nn.Module):
    """Frames [B, C, F] -> samples [B, audio channels, F * hop length]."""

    def __init__(self, config: EncodecComponent) -> None:
        super().__init__()
        self.input = Convolution(config, config.hidden_size, config.widest, config.kernel_size, shortest=1)
        self.lstm = ResidualLstm(config)
        self.stages = nn.ModuleList()
        width, shortest = config.widest, 1
        for ratio in config.upsampling_ratios:
            shortest *= ratio
            self.stages.append(Upsampling(config, width, ratio, shortest=shortest))
            width //= 2
        self.output = Convolution(config, width, config.audio_channels, config.last_kernel_size, shortest=shortest)

    def forward(self, x_BCF: Tensor) -> Tensor:
        x_BCT = self.lstm(self.input(x_BCF))
        for stage in self.stages:
            x_BCT = stage(x_BCT)
        out_BCT: Tensor = self.output(functional.elu(x_BCT))
        return out_BCT


class Downsampling(nn.Module):
    """Residual units of growing dilation, elu, and a strided convolution that doubles the channels."""

    def __init__(self, config: EncodecComponent, width: int, ratio: int, *, shortest: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            ResidualUnit(config, width, dilation=config.dilation_growth_rate**index, shortest=shortest)
            for index in range(config.num_residual_layers)
        )
        self.conv = StridedConvolution(config, width, 2 * width, ratio)

    def forward(self, x_BCT: Tensor) -> Tensor:
        for unit in self.units:
            x_BCT = unit(x_BCT)
        out_BCT: Tensor = self.conv(functional.elu(x_BCT))
        return out_BCT


class SeanetEncoder(nn.Module):
    """Samples [B, audio channels, T], at least one frame of them -> vectors [B, C, ceil(T / hop length)]."""

    def __init__(self, config: EncodecComponent) -> None:
        super().__init__()
        width, shortest = config.num_filters, config.hop_length
        self.input = Convolution(config, config.audio_channels, width, config.kernel_size, shortest=shortest)
        self.stages = nn.ModuleList()
        for ratio in reversed(config.upsampling_ratios):
            self.stages.append(Downsampling(config, width, ratio, shortest=shortest))
            width, shortest = 2 * width, shortest // ratio
        self.lstm = ResidualLstm(config)
        self.output = Convolution(config, width, config.hidden_size, config.last_kernel_size, shortest=1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = self.input(x_BCT)
        for stage in self.stages:
            x_BCT = stage(x_BCT)
        vectors_BCF: Tensor = self.output(functional.elu(self.lstm(x_BCT)))
        return vectors_BCF


class Codebooks(nn.Module):
    """The vectors of all codebooks, one codebook below the other: [Q * codebook size, C]."""

    def __init__(self, config: EncodecComponent) -> None:
        super().__init__()
        self.size = config.codebook_size
        self.token_embedding = nn.Embedding(config.num_codebooks * config.codebook_size, config.hidden_size)

    def look_up(self, codes_BQF: Tensor) -> Tensor:
        """What each code stands for, [B, Q, F, C]; the first codebooks alone may be given."""
        first_Q1 = torch.arange(codes_BQF.shape[1], device=codes_BQF.device)[:, None] * self.size
        vectors_BQFC: Tensor = self.token_embedding(codes_BQF + first_Q1)
        return vectors_BQFC

    def forward(self, codes_BQF: Tensor) -> Tensor:
        """The sum of what they stand for, [B, C, F]."""
        return self.look_up(codes_BQF).sum(1).transpose(1, 2)


class Encodec(nn.Module):
    """The parameters of all graphs of one codec."""

    def __init__(self, config: EncodecComponent) -> None:
        super().__init__()
        self.config = config
        self.codebooks = Codebooks(config)
        self.decoder = SeanetDecoder(config)
        self.encoder = SeanetEncoder(config) if config.has_encoder else None


class EncodecDecode(nn.Module):
    """codes [B, Q, F] -> samples [B, audio channels, F * hop length]."""

    def __init__(self, codec: Encodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, codes_BQF: Tensor) -> Tensor:
        samples_BCT: Tensor = self.codec.decoder(self.codec.codebooks(codes_BQF))
        return samples_BCT


class EncodecEncode(nn.Module):
    """samples [B, audio channels, T] -> vectors [B, C, F]."""

    def __init__(self, codec: Encodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, samples_BCT: Tensor) -> Tensor:
        assert self.codec.encoder is not None
        vectors_BCF: Tensor = self.codec.encoder(samples_BCT)
        return vectors_BCF


class EncodecLookUp(nn.Module):
    """codes [B, Q, F] -> the vector of each, [B, Q, F, C]: how a host reads the codebooks."""

    def __init__(self, codec: Encodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, codes_BQF: Tensor) -> Tensor:
        return self.codec.codebooks.look_up(codes_BQF)
