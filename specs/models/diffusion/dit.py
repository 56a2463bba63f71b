"""PixArt's diffusion transformer (Chen et al. 2023), after DiT (Peebles and Xie 2022), as diffusers has it.

    latents -> patches + positions -> layers -> norm, scale and shift -> patches -> noise (and variance)
    layer    x + gate attention(norm(x) scale + shift); x + attention over the text; x + gate mlp(norm(x) scale + shift)

One Linear makes scale, shift and gate of all layers from the timestep (adaLN-single); a layer adds a table of its own.

Shape letters: B batch, C channels, H height, W width, N patches, S text tokens, P patch size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components import DitComponent
from specs.components.diffusion.dit import SINUSOIDS
from specs.models.diffusion.unet import AttentionCore, ConditionMlp, Sinusoids

_EPS = 1e-6
_PERIOD = 10000.0
_MASKED = -10000.0  # what diffusers adds to the scores of padding; its exponential is zero


class DitAttention(nn.Module):
    """Multi-head attention over `context`."""

    def __init__(self, width: int, context: int, num_heads: int, *, bias: bool) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(context, width, bias=bias)
        self.value = nn.Linear(context, width, bias=bias)
        self.core = AttentionCore(num_heads)
        self.out = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, context_BSC: Tensor, bias_B11S: Tensor | None = None) -> Tensor:
        q_BNC, k_BSC, v_BSC = self.query(x_BNC), self.key(context_BSC), self.value(context_BSC)
        out_BNC: Tensor = self.out(self.core(q_BNC, k_BSC, v_BSC, bias_B11S))
        return out_BNC


class DitLayer(nn.Module):
    """Attention over patches, attention over text, MLP; the first and the last modulated."""

    def __init__(self, config: DitComponent) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.modulation = nn.Parameter(torch.empty(6, width))
        self.attention1 = DitAttention(width, width, config.num_heads, bias=bias)
        self.attention2 = DitAttention(width, config.cross_width, config.num_heads, bias=bias)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BNC: Tensor, context_BSC: Tensor, bias_B11S: Tensor, time_B6C: Tensor) -> Tensor:
        parts = (self.modulation + time_B6C).chunk(6, dim=1)
        shift1_B1C, scale1_B1C, gate1_B1C, shift2_B1C, scale2_B1C, gate2_B1C = parts
        normed_BNC = ops.ada_layer_norm(x_BNC, shift1_B1C, scale1_B1C, eps=_EPS)
        x_BNC = x_BNC + gate1_B1C * self.attention1(normed_BNC, normed_BNC)
        x_BNC = x_BNC + self.attention2(x_BNC, context_BSC, bias_B11S)
        normed_BNC = ops.ada_layer_norm(x_BNC, shift2_B1C, scale2_B1C, eps=_EPS)
        out_BNC: Tensor = self.down(functional.gelu(self.up(normed_BNC), approximate="tanh"))
        return x_BNC + gate2_B1C * out_BNC


class CaptionMlp(nn.Module):
    """Text states to the model's width: two Linears around a tanh GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, outputs)
        self.linear2 = nn.Linear(outputs, outputs)

    def forward(self, x_BSC: Tensor) -> Tensor:
        out_BSC: Tensor = self.linear2(functional.gelu(self.linear1(x_BSC), approximate="tanh"))
        return out_BSC


class Dit(nn.Module):
    """sample [B, C, H, W], timestep [B], encoder_states [B, S, C], lengths [B] (and sizes) -> noise, variance."""

    def __init__(self, config: DitComponent) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.in_channels, width, patch, stride=patch)
        self.sinusoids = Sinusoids(SINUSOIDS, flip_sin_to_cos=True, freq_shift=0.0)
        self.time_embedding = ConditionMlp(SINUSOIDS, width)
        self.resolution_embedding = ConditionMlp(SINUSOIDS, width // 3) if config.size_conditions else None
        self.ratio_embedding = ConditionMlp(SINUSOIDS, width // 3) if config.size_conditions else None
        self.time_modulation = nn.Linear(width, 6 * width)
        self.caption_projection = CaptionMlp(config.caption_size, width) if config.caption_size else None
        self.layers = nn.ModuleList(DitLayer(config) for _ in range(config.num_layers))
        self.output_modulation = nn.Parameter(torch.empty(2, width))
        self.proj_out = nn.Linear(width, patch * patch * config.out_channels)

    def forward(
        self, sample_BCHW: Tensor, timestep_B: Tensor, context_BSC: Tensor, lengths_B: Tensor, *sizes: Tensor
    ) -> Tensor:
        """`sizes`, with size_conditions: resolution [B, 2] (height, width) and aspect_ratio [B, 1]."""
        height, width = (side // self.config.patch_size for side in sample_BCHW.shape[2:])
        patches_BNC = self.patch_embedding(sample_BCHW).flatten(2).transpose(1, 2)
        positions_NC = torch.tensor(compute_positions(self.config, height, width), dtype=torch.float32)
        x_BNC = patches_BNC + positions_NC.to(patches_BNC.dtype)
        time_BC = self.embed_time(timestep_B, sizes, sample_BCHW.dtype)
        time_B6C = self.time_modulation(functional.silu(time_BC)).unflatten(1, (6, -1))
        if self.caption_projection is not None:
            context_BSC = self.caption_projection(context_BSC)
        position_S = torch.arange(context_BSC.shape[1], device=lengths_B.device)
        padding_B11S = (position_S >= lengths_B[:, None])[:, None, None, :]
        bias_B11S = padding_B11S.to(x_BNC.dtype) * _MASKED
        for layer in self.layers:
            x_BNC = layer(x_BNC, context_BSC, bias_B11S, time_B6C)
        shift_B1C, scale_B1C = (self.output_modulation + time_BC[:, None]).chunk(2, dim=1)
        x_BNC = self.proj_out(ops.ada_layer_norm(x_BNC, shift_B1C, scale_B1C, eps=_EPS))
        return self._join_patches(x_BNC, height, width)

    def embed_time(self, timestep_B: Tensor, sizes: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Timestep and sizes, [B, C]."""
        time_BC: Tensor = self.time_embedding(self.sinusoids(timestep_B).to(dtype))
        if self.resolution_embedding is None or self.ratio_embedding is None:
            return time_BC
        resolution_B2, ratio_B1 = sizes
        batch = timestep_B.shape[0]
        parts = [
            embedding(self.sinusoids(size.flatten()).to(dtype)).reshape(batch, -1)
            for embedding, size in ((self.resolution_embedding, resolution_B2), (self.ratio_embedding, ratio_B1))
        ]
        return time_BC + torch.cat(parts, dim=1)

    def _join_patches(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        patch, channels = self.config.patch_size, self.config.out_channels
        x_BHWPPC = x_BNC.reshape(-1, height, width, patch, patch, channels)
        return x_BHWPPC.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height * patch, width * patch)


def compute_positions(config: DitComponent, height: int, width: int) -> list[list[float]]:
    """Sines and cosines of column, then of row, scaled to the training's size: [N, C].

    Coordinates are float32 and angles float64, as diffusers computes them: the table is the model's, to the last bit.
    """
    base = config.base_size // config.patch_size

    def place(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        scaled = np.arange(count, dtype=np.float32) / np.float32(count / base)
        return np.asarray(scaled / np.float32(config.interpolation_scale), np.float32)

    quarter = config.hidden_size // 4
    frequencies = 1.0 / _PERIOD ** (np.arange(quarter, dtype=np.float64) / quarter)
    columns, rows = np.meshgrid(place(width), place(height))
    waves = []
    for grid in (columns, rows):
        angles = grid.reshape(-1, 1).astype(np.float64) * frequencies
        waves += [np.sin(angles), np.cos(angles)]
    table: list[list[float]] = np.concatenate(waves, axis=1).astype(np.float32).tolist()
    return table
