"""Encoders of sensors: points and series of any length, padded, to a fixed number of tokens.

    points   [x, y, z] / range --two Linears a point--> pooled by attention            PointNet (Qi et al. 2017)
    series   standardised --Conv, stride of its kernel--> + positions -> layers -> pooled     PatchTST (Nie et al. 2023)

The pooling is Set Transformer's (Lee et al. 2019): learned latents look at what is real. What lies beyond a row's
length has no influence, whatever it is.

Shape letters: B batch, N points, S steps, P patches, C channels, D hidden size, L latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components import PointsComponent, SeriesComponent
from specs.components.sensor import PooledSensor
from specs.models.fusion.resampling import AttentionTo
from specs.models.layers import Mlp
from specs.models.text.encoder import make_padding_bias

_LONGEST_WAVE = 10_000.0  # patches, of the sinusoidal positions (Vaswani et al. 2017)


class AttentionPool(nn.Module):
    """x [B, N, D] -> latents that looked at it, [B, L, D]; `bias` hides what is not real."""

    def __init__(self, config: PooledSensor) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.latent_embedding = nn.Parameter(torch.empty(config.num_latents, width))
        self.latent_norm = nn.LayerNorm(width, eps=eps)
        self.input_norm = nn.LayerNorm(width, eps=eps)
        self.attention = AttentionTo(width, config.num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, config.mlp_width, "gelu")
        self.output_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x_BND: Tensor, bias_B11N: Tensor) -> Tensor:
        latents_BLD = self.latent_embedding.expand(x_BND.shape[0], -1, -1)
        looked_BLD = self.attention(self.latent_norm(latents_BLD), self.input_norm(x_BND), bias_B11N)
        latents_BLD = latents_BLD + looked_BLD
        latents_BLD = latents_BLD + self.mlp(self.mlp_norm(latents_BLD))
        out_BLD: Tensor = self.output_norm(latents_BLD)
        return out_BLD


def blank(x_BNC: Tensor, lengths_B: Tensor) -> Tensor:
    """`x` with zeros beyond each row's length, whatever was there."""
    valid_BN = torch.arange(x_BNC.shape[1], device=x_BNC.device) < lengths_B[:, None]
    return torch.where(valid_BN[:, :, None], x_BNC, torch.zeros((), dtype=x_BNC.dtype))


class RawPoints(nn.Module):
    """Metres -> shares of the range; zeros where there is no point."""

    def __init__(self, config: PointsComponent) -> None:
        super().__init__()
        self.config = config

    def forward(self, points_BNC: Tensor, lengths_B: Tensor) -> Tensor:
        others = self.config.point_size - 3
        factor_C = torch.tensor([1 / self.config.range_m] * 3 + [1.0] * others, dtype=points_BNC.dtype)
        return blank(points_BNC, lengths_B) * factor_C


class PointsEncoder(nn.Module):
    """points [B, N, point size] and lengths [B] -> tokens [B, L, D]."""

    def __init__(self, config: PointsComponent) -> None:
        super().__init__()
        self.raw = RawPoints(config)
        self.up = nn.Linear(config.point_size, config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.pool = AttentionPool(config)

    def forward(self, points_BNC: Tensor, lengths_B: Tensor) -> Tensor:
        x_BND = self.mix(functional.gelu(self.up(self.raw(points_BNC, lengths_B))))
        tokens_BLD: Tensor = self.pool(x_BND, make_padding_bias(lengths_B, points_BNC.shape[1], x_BND.dtype))
        return tokens_BLD


class RawSeries(nn.Module):
    """Each channel of each row with mean 0 and deviation 1 over its real steps; zeros beyond them."""

    def forward(self, series_BSC: Tensor, lengths_B: Tensor) -> Tensor:
        count_B11 = lengths_B[:, None, None].to(series_BSC.dtype)
        real_BSC = blank(series_BSC, lengths_B)
        mean_B1C = real_BSC.sum(dim=1, keepdim=True) / count_B11
        centred_BSC = blank(series_BSC - mean_B1C, lengths_B)
        variance_B1C = (centred_BSC * centred_BSC).sum(dim=1, keepdim=True) / count_B11
        return centred_BSC / (variance_B1C + 1e-5).sqrt()


class PatchPositions(nn.Module):
    """Sinusoids of each patch's number, [patches, D]: sines, then cosines."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x_BPD: Tensor) -> Tensor:
        half = -(-self.width // 2)
        step = -math.log(_LONGEST_WAVE) / half
        rate_h = (torch.arange(half, dtype=x_BPD.dtype) * step).exp()
        angle_Ph = torch.arange(x_BPD.shape[1], dtype=x_BPD.dtype)[:, None] * rate_h
        return torch.cat([angle_Ph.sin(), angle_Ph.cos()], dim=1)[:, : self.width]


class SeriesPositions(nn.Module):
    """x + positions; the module's name keeps the angles in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.raw = PatchPositions(width)

    def forward(self, x_BPD: Tensor) -> Tensor:
        moved_BPD: Tensor = x_BPD + self.raw(x_BPD)
        return moved_BPD


class SeriesLayer(nn.Module):
    """One pre-norm layer over the patches that are real."""

    def __init__(self, config: SeriesComponent) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = AttentionTo(width, config.num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, config.mlp_width, "gelu")

    def forward(self, x_BPD: Tensor, bias_B11P: Tensor) -> Tensor:
        normed_BPD = self.attention_norm(x_BPD)
        x_BPD = x_BPD + self.attention(normed_BPD, normed_BPD, bias_B11P)
        out_BPD: Tensor = x_BPD + self.mlp(self.mlp_norm(x_BPD))
        return out_BPD


class SeriesEncoder(nn.Module):
    """series [B, S, C], lengths [B] -> tokens [B, L, D]; a patch that is real in part counts, the rest of it is 0."""

    def __init__(self, config: SeriesComponent) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.raw = RawSeries()
        self.embed = nn.Conv1d(config.num_channels, config.hidden_size, self.patch, stride=self.patch)
        self.position = SeriesPositions(config.hidden_size)
        self.layers = nn.ModuleList(SeriesLayer(config) for _ in range(config.num_layers))
        self.pool = AttentionPool(config)

    def forward(self, series_BSC: Tensor, lengths_B: Tensor) -> Tensor:
        # up to a whole patch, and one more: torch would write a graph of its own for a single one
        x_BCS = functional.pad(self.raw(series_BSC, lengths_B).transpose(1, 2), (0, 2 * self.patch - 1))
        x_BPD = self.position(self.embed(x_BCS).transpose(1, 2))
        patches_B = (lengths_B + self.patch - 1) // self.patch
        bias_B11P = make_padding_bias(patches_B, x_BPD.shape[1], x_BPD.dtype)
        for layer in self.layers:
            x_BPD = layer(x_BPD, bias_B11P)
        tokens_BLD: Tensor = self.pool(x_BPD, bias_B11P)
        return tokens_BLD
