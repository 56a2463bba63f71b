"""HiFi-GAN's generator (Kong et al. 2020): frames -> samples.

    conv -> for each rate: leaky -> transposed conv -> mean of residual blocks -> leaky -> conv -> tanh
    residual block: for each dilation x = x + conv(leaky(dilated conv(leaky(x))))

Shape letters: B batch, C channels, F frames, T time, E width of a speaker's vector.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from specs.components.audio.hifigan import HifiganComponent

_LAST_SLOPE = 0.01  # of the last activation: torch's own default, whatever the others have


class ResidualBlock(nn.Module):
    """Pairs of convolutions of one kernel, the first of each dilated."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.dilated = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
            for dilation in dilations
        )
        self.plain = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x_BCT: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            y_BCT = dilated(functional.leaky_relu(x_BCT, self.slope))
            x_BCT = x_BCT + plain(functional.leaky_relu(y_BCT, self.slope))
        return x_BCT


class Upsampling(nn.Module):
    """Leaky, a transposed convolution, and the mean of the residual blocks."""

    def __init__(self, config: HifiganComponent, stage: int) -> None:
        super().__init__()
        inputs, outputs = config.initial_size >> stage, config.initial_size >> (stage + 1)
        rate, kernel, self.slope = config.upsample_rates[stage], config.upsample_kernels[stage], config.leaky_slope
        self.conv = nn.ConvTranspose1d(inputs, outputs, kernel, rate, padding=(kernel - rate) // 2)
        self.blocks = nn.ModuleList(
            ResidualBlock(outputs, size, dilations, config.leaky_slope)
            for size, dilations in zip(config.residual_kernels, config.residual_dilations, strict=True)
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = self.conv(functional.leaky_relu(x_BCT, self.slope))
        total_BCT: Tensor = self.blocks[0](x_BCT)
        for index in range(1, len(self.blocks)):
            total_BCT = total_BCT + self.blocks[index](x_BCT)
        return total_BCT / len(self.blocks)


class Hifigan(nn.Module):
    """latents [B, C, F], speaker [B, E] -> samples [B, F * hop length] in [-1, 1]."""

    def __init__(self, config: HifiganComponent) -> None:
        super().__init__()
        stages = range(len(config.upsample_rates))
        self.input = nn.Conv1d(config.input_size, config.initial_size, 7, padding=3)
        self.speaker = nn.Conv1d(config.speaker_size, config.initial_size, 1) if config.speaker_size else None
        self.stages = nn.ModuleList(Upsampling(config, stage) for stage in stages)
        self.output = nn.Conv1d(config.initial_size >> len(stages), 1, 7, padding=3, bias=False)

    def forward(self, x_BCF: Tensor, *speaker_BE: Tensor) -> Tensor:
        x_BCT = self.input(x_BCF)
        if self.speaker is not None:
            x_BCT = x_BCT + self.speaker(speaker_BE[0][:, :, None])
        for stage in self.stages:
            x_BCT = stage(x_BCT)
        samples_B1T: Tensor = self.output(functional.leaky_relu(x_BCT, _LAST_SLOPE)).tanh()
        return samples_B1T[:, 0]
