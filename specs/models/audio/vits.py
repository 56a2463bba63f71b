"""VITS's text side (Kim et al. 2021): characters -> states and prior; states -> how long each token lasts.

    text encoder   embedding * sqrt(C) -> post-norm layers -> states;  states -> mean, log variance of the latents
    layer          x = norm(x + attention(x));  x = norm(x + conv(act(conv(x))))
    durations      stochastic: noise -> splines and an affine, in reverse, conditioned on the states; else two convs

Padding is 0 wherever a convolution could see it, so that a padded row equals the row alone.
Shape letters: B batch, T tokens, S tokens as keys, C channels, H heads, D head dim, R distances, L latent channels,
E width of a speaker's vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components.audio.vits import VitsDurationComponent, VitsTextComponent
from specs.models.audio.spline import invert_spline
from specs.models.layers import activate

_SEPARABLE_EPS = 1e-5  # of the norms between separable convolutions, whatever the config says


def mask_beyond(lengths_B: Tensor, like: Tensor) -> Tensor:
    """[B, 1, T], 1 within each row's length and 0 beyond; T is the last size of `like`, which gives the type."""
    seen_BT = torch.arange(like.shape[-1], device=lengths_B.device) < lengths_B[:, None]
    return seen_BT[:, None, :].to(like.dtype)


class RelativeAttention(nn.Module):
    """Self attention with a learned vector for each distance up to `window` (Shaw et al. 2018).

    scores = q k + q keys[s - t];  out = p v + sum over distances of p values[s - t];  nothing beyond the window
    """

    def __init__(self, config: VitsTextComponent) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim, self.window = config.num_heads, width // config.num_heads, config.window_size
        self.qkv = nn.Linear(width, 3 * width, bias=config.attention_bias)
        self.out = nn.Linear(width, width, bias=config.attention_bias)
        self.distance_keys = nn.Parameter(torch.empty(2 * self.window + 1, self.head_dim))
        self.distance_values = nn.Parameter(torch.empty(2 * self.window + 1, self.head_dim))

    def forward(self, x_BTC: Tensor, bias_B11S: Tensor) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        qkv_BTC = self.qkv(x_BTC).chunk(3, dim=-1)
        q_BHTD, k_BHSD, v_BHSD = (
            part.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2) for part in qkv_BTC
        )
        q_BHTD = q_BHTD * self.head_dim**-0.5
        scores_BHTS = q_BHTD @ k_BHSD.transpose(-1, -2) + self._score_distances(q_BHTD) + bias_B11S
        shares_BHTS = scores_BHTS.softmax(-1)
        mixed_BHTD = shares_BHTS @ v_BHSD + self._mix_distances(shares_BHTS)
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC

    def _score_distances(self, q_BHTD: Tensor) -> Tensor:
        """[B, H, T, S]: each query's product with the key of the distance s - t."""
        place = torch.arange(q_BHTD.shape[2], device=q_BHTD.device)
        distance_TS = place[None, :] - place[:, None]
        near_TS = distance_TS.abs() <= self.window
        index_TS = (distance_TS + self.window).clamp(0, 2 * self.window)
        scores_BHTR = q_BHTD @ self.distance_keys.t()
        picked_BHTS = scores_BHTR.gather(-1, index_TS.expand(*q_BHTD.shape[:2], -1, -1))
        return picked_BHTS * near_TS.to(q_BHTD.dtype)

    def _mix_distances(self, shares_BHTS: Tensor) -> Tensor:
        """[B, H, T, D]: the values of the distances, each with the share of the token that lies there."""
        tokens = shares_BHTS.shape[-1]
        place = torch.arange(tokens, device=shares_BHTS.device)
        there_TR = place[:, None] + torch.arange(-self.window, self.window + 1, device=shares_BHTS.device)
        inside_TR = (there_TR >= 0) & (there_TR < tokens)
        index_TR = there_TR.clamp(min=0).minimum(place[-1:])
        picked_BHTR = shares_BHTS.gather(-1, index_TR.expand(*shares_BHTS.shape[:2], -1, -1))
        return (picked_BHTR * inside_TR.to(shares_BHTS.dtype)) @ self.distance_values


class ConvolutionMlp(nn.Module):
    """Two convolutions around an activation; an even kernel sees one place more behind than before."""

    def __init__(self, config: VitsTextComponent) -> None:
        super().__init__()
        kernel = config.mlp_kernel
        self.activation, self.padding = config.activation, ((kernel - 1) // 2, kernel // 2)
        self.up = nn.Conv1d(config.hidden_size, config.mlp_size, kernel)
        self.down = nn.Conv1d(config.mlp_size, config.hidden_size, kernel)

    def forward(self, x_BTC: Tensor, mask_B1T: Tensor) -> Tensor:
        x_BCT = functional.pad(x_BTC.transpose(1, 2) * mask_B1T, self.padding)
        x_BCT = activate(self.up(x_BCT), self.activation)
        out_BCT: Tensor = self.down(functional.pad(x_BCT * mask_B1T, self.padding)) * mask_B1T
        return out_BCT.transpose(1, 2)


class VitsLayer(nn.Module):
    """Post-norm: attention, then convolutions."""

    def __init__(self, config: VitsTextComponent) -> None:
        super().__init__()
        self.attention = RelativeAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ConvolutionMlp(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BTC: Tensor, mask_B1T: Tensor, bias_B11S: Tensor) -> Tensor:
        x_BTC = self.attention_norm(x_BTC + self.attention(x_BTC, bias_B11S))
        out_BTC: Tensor = self.mlp_norm(x_BTC + self.mlp(x_BTC, mask_B1T))
        return out_BTC


class VitsTextEncoder(nn.Module):
    """token_ids [B, T], lengths [B], speaker_ids [B] -> states [B, T, C], prior means and log variances [B, T, L].

    Last comes the speaker's vector [B, E]. A model of one speaker takes and gives nothing of it.
    """

    def __init__(self, config: VitsTextComponent) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(VitsLayer(config) for _ in range(config.num_layers))
        self.prior = nn.Conv1d(config.hidden_size, 2 * config.latent_size, 1)
        self.speaker_embedding = nn.Embedding(config.num_speakers, config.speaker_size) if config.speaker_size else None

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor, *speaker_ids: Tensor) -> tuple[Tensor, ...]:
        x_BTC = self.token_embedding(token_ids_BT) * math.sqrt(self.config.hidden_size)
        mask_B1T = mask_beyond(lengths_B, x_BTC.transpose(1, 2))
        bias_B1T = torch.zeros_like(mask_B1T).masked_fill(mask_B1T == 0, torch.finfo(x_BTC.dtype).min)
        x_BTC = x_BTC * mask_B1T.transpose(1, 2)
        for layer in self.layers:
            x_BTC = layer(x_BTC, mask_B1T, bias_B1T[:, None])
        x_BTC = x_BTC * mask_B1T.transpose(1, 2)
        prior_BLT = self.prior(x_BTC.transpose(1, 2)) * mask_B1T
        means_BTL, log_variances_BTL = prior_BLT.transpose(1, 2).chunk(2, dim=-1)
        if self.speaker_embedding is None:
            return x_BTC, means_BTL, log_variances_BTL
        return x_BTC, means_BTL, log_variances_BTL, self.speaker_embedding(speaker_ids[0])


class SeparableConvolutions(nn.Module):
    """x = x + gelu(norm(point(gelu(norm(dilated(x)))))), the i-th with a dilation of kernel^i."""

    def __init__(self, config: VitsDurationComponent) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.kernel_size
        steps = range(config.num_layers)
        self.dilated = nn.ModuleList(
            nn.Conv1d(
                width, width, kernel, groups=width, dilation=kernel**step, padding=(kernel - 1) * kernel**step // 2
            )
            for step in steps
        )
        self.dilated_norms = nn.ModuleList(nn.LayerNorm(width, eps=_SEPARABLE_EPS) for _ in steps)
        self.points = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in steps)
        self.point_norms = nn.ModuleList(nn.LayerNorm(width, eps=_SEPARABLE_EPS) for _ in steps)

    def forward(self, x_BCT: Tensor, mask_B1T: Tensor) -> Tensor:
        parts = zip(self.dilated, self.dilated_norms, self.points, self.point_norms, strict=True)
        for dilated, dilated_norm, point, point_norm in parts:
            y_BCT = functional.gelu(dilated_norm(dilated(x_BCT * mask_B1T).transpose(1, 2))).transpose(1, 2)
            x_BCT = x_BCT + functional.gelu(point_norm(point(y_BCT).transpose(1, 2))).transpose(1, 2)
        return x_BCT * mask_B1T


class SplineFlow(nn.Module):
    """One half decides a spline, and the other half goes back through it: [B, 1, T] each."""

    def __init__(self, config: VitsDurationComponent) -> None:
        super().__init__()
        self.bins, self.bound, width = config.num_bins, config.tail_bound, config.hidden_size
        self.scale = 1 / math.sqrt(width)
        self.input = nn.Conv1d(1, width, 1)
        self.body = SeparableConvolutions(config)
        self.output = nn.Conv1d(width, 3 * config.num_bins - 1, 1)

    def forward(self, decides_B1T: Tensor, moves_B1T: Tensor, states_BCT: Tensor, mask_B1T: Tensor) -> Tensor:
        hidden_BCT = self.body(self.input(decides_B1T) + states_BCT, mask_B1T)
        shape_B1TX = (self.output(hidden_BCT) * mask_B1T).transpose(1, 2)[:, None]
        widths, heights = shape_B1TX[..., : self.bins], shape_B1TX[..., self.bins : 2 * self.bins]
        slopes = shape_B1TX[..., 2 * self.bins :]
        return invert_spline(moves_B1T, widths * self.scale, heights * self.scale, slopes, bound=self.bound)


class StochasticDurations(nn.Module):
    """states [B, T, C], lengths [B], noise [B, 2, T], speaker [B, E] -> log durations [B, T].

    The noise is scaled already. Flows stand in the order in which inference runs them.
    """

    def __init__(self, config: VitsDurationComponent) -> None:
        super().__init__()
        width = config.hidden_size
        self.input = nn.Conv1d(width, width, 1)
        self.speaker = nn.Conv1d(config.speaker_size, width, 1) if config.speaker_size else None
        self.body = SeparableConvolutions(config)
        self.output = nn.Conv1d(width, width, 1)
        self.flows = nn.ModuleList(SplineFlow(config) for _ in range(config.num_run_flows))
        self.translate = nn.Parameter(torch.empty(2))
        self.log_scale = nn.Parameter(torch.empty(2))

    def forward(self, states_BTC: Tensor, lengths_B: Tensor, noise_B2T: Tensor, *speaker_BE: Tensor) -> Tensor:
        x_BCT = self.input(states_BTC.transpose(1, 2))
        mask_B1T = mask_beyond(lengths_B, x_BCT)
        if self.speaker is not None:
            x_BCT = x_BCT + self.speaker(speaker_BE[0][:, :, None])
        x_BCT = self.output(self.body(x_BCT, mask_B1T)) * mask_B1T
        first_B1T, second_B1T = noise_B2T.chunk(2, dim=1)
        for flow in self.flows:
            first_B1T, second_B1T = second_B1T * mask_B1T, first_B1T
            second_B1T = flow(first_B1T, second_B1T, x_BCT, mask_B1T) * mask_B1T
        log_BT: Tensor = (second_B1T[:, 0] - self.translate[0]) * torch.exp(-self.log_scale[0]) * mask_B1T[:, 0]
        return log_BT


class PlainDurations(nn.Module):
    """states [B, T, C], lengths [B], speaker [B, E] -> log durations [B, T]."""

    def __init__(self, config: VitsDurationComponent) -> None:
        super().__init__()
        width, inner, kernel = config.hidden_size, config.filter_size, config.kernel_size
        self.speaker = nn.Conv1d(config.speaker_size, width, 1) if config.speaker_size else None
        self.convs = nn.ModuleList(nn.Conv1d(size, inner, kernel, padding=kernel // 2) for size in (width, inner))
        self.norms = nn.ModuleList(nn.LayerNorm(inner, eps=config.layer_norm_eps) for _ in range(2))
        self.output = nn.Conv1d(inner, 1, 1)

    def forward(self, states_BTC: Tensor, lengths_B: Tensor, *speaker_BE: Tensor) -> Tensor:
        x_BCT = states_BTC.transpose(1, 2)
        mask_B1T = mask_beyond(lengths_B, x_BCT)
        if self.speaker is not None:
            x_BCT = x_BCT + self.speaker(speaker_BE[0][:, :, None])
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BCT = norm(conv(x_BCT * mask_B1T).relu().transpose(1, 2)).transpose(1, 2)
        log_BT: Tensor = (self.output(x_BCT * mask_B1T) * mask_B1T)[:, 0]
        return log_BT
