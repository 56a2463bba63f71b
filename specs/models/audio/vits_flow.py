"""VITS's flow in reverse (Kim et al. 2021): latents of the text's prior -> latents of the vocoder.

    each coupling (Dinh et al. 2017), the last one first: flip the channels;  second half - WaveNet(first half)

Shape letters: B batch, L latent channels, C channels, F frames, E width of a speaker's vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components.audio.vits import VitsFlowComponent
from specs.models.audio.vits import mask_beyond


class WaveNet(nn.Module):
    """Gated dilated convolutions with residual and skip outputs (van den Oord et al. 2016), the length kept."""

    def __init__(self, config: VitsFlowComponent) -> None:
        super().__init__()
        width, kernel, last = config.hidden_size, config.kernel_size, config.num_layers - 1
        dilations = [config.dilation_rate**layer for layer in range(config.num_layers)]
        self.speaker = nn.Conv1d(config.speaker_size, 2 * width * config.num_layers, 1) if config.speaker_size else None
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
            for dilation in dilations
        )
        self.outputs = nn.ModuleList(
            nn.Conv1d(width, width if layer == last else 2 * width, 1) for layer in range(config.num_layers)
        )

    def forward(self, x_BCF: Tensor, mask_B1F: Tensor, speaker_BE: tuple[Tensor, ...]) -> Tensor:
        shifts: tuple[Tensor, ...] | None = None
        if self.speaker is not None:
            all_shifts = self.speaker(speaker_BE[0][:, :, None])  # cut in one, the exporter leaves a list of tensors
            shifts = all_shifts.chunk(len(self.gates), dim=1) if len(self.gates) > 1 else (all_shifts,)
        skips = torch.zeros_like(x_BCF)
        for layer, (gate, output) in enumerate(zip(self.gates, self.outputs, strict=True)):
            gated_BCF = gate(x_BCF) if shifts is None else gate(x_BCF) + shifts[layer]
            filter_BCF, share_BCF = gated_BCF.chunk(2, dim=1)
            out_BCF = output(filter_BCF.tanh() * share_BCF.sigmoid())
            if layer == len(self.gates) - 1:
                skips = skips + out_BCF
                break
            residual_BCF, skip_BCF = out_BCF.chunk(2, dim=1)
            x_BCF, skips = (x_BCF + residual_BCF) * mask_B1F, skips + skip_BCF
        return skips * mask_B1F


class Coupling(nn.Module):
    """latents [B, L, F] -> the same, whose second half lost what the first half says."""

    def __init__(self, config: VitsFlowComponent) -> None:
        super().__init__()
        half = config.latent_size // 2
        self.input = nn.Conv1d(half, config.hidden_size, 1)
        self.wavenet = WaveNet(config)
        self.output = nn.Conv1d(config.hidden_size, half, 1)

    def forward(self, x_BLF: Tensor, mask_B1F: Tensor, speaker_BE: tuple[Tensor, ...]) -> Tensor:
        first, second = x_BLF.chunk(2, dim=1)
        mean = self.output(self.wavenet(self.input(first) * mask_B1F, mask_B1F, speaker_BE)) * mask_B1F
        return torch.cat([first, (second - mean) * mask_B1F], dim=1)


class VitsFlow(nn.Module):
    """prior_latents [B, L, F], lengths [B], speaker [B, E] -> latents [B, L, F], 0 beyond each row's length."""

    def __init__(self, config: VitsFlowComponent) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(config) for _ in range(config.num_flows))

    def forward(self, x_BLF: Tensor, lengths_B: Tensor, *speaker_BE: Tensor) -> Tensor:
        mask_B1F = mask_beyond(lengths_B, x_BLF)
        for coupling in reversed(self.couplings):
            x_BLF = coupling(x_BLF.flip(1), mask_B1F, speaker_BE)
        return x_BLF * mask_B1F
