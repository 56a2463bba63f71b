"""Features to features: what joins several of them, or many tokens into few."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from specs import ops
from specs.components.fusion.resampling import CrossAttentionComponent, PerceiverComponent
from specs.composing.making import fill_seeded, make_config
from specs.models.fusion import resampling


@final
class GatedFusion(nn.Module):
    """Per channel, a learned share of each of two features of one shape [..., C] (Arevalo et al. 2017)."""

    def __init__(self, hidden_size: int, *, seed: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * hidden_size, hidden_size)
        fill_seeded(self, seed)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return ops.gated_fusion(first, second, self.gate.weight, self.gate.bias)


@final
class ConcatFusion(nn.Module):
    """Features of one shape [..., C], side by side and through one Linear: [..., C]."""

    def __init__(self, hidden_size: int, *, num_inputs: int, seed: int) -> None:
        super().__init__()
        self.projection = nn.Linear(num_inputs * hidden_size, hidden_size)
        fill_seeded(self, seed)

    def forward(self, *features: Tensor) -> Tensor:
        fused: Tensor = self.projection(torch.cat(features, dim=-1))
        return fused


@final
class Fusion:
    """What joins features; each option of the component of the same name is a keyword."""

    @staticmethod
    def cross_attention(
        hidden_size: int, num_heads: int = 8, *, seed: int = 0, **options: Any
    ) -> resampling.CrossAttention:
        """`fusion(query=..., key_value=...)`; `compute_weights` shows what was looked at."""
        given = {"kind": "fusion.cross_attention", "hidden_size": hidden_size, "num_heads": num_heads}
        return fill_seeded(resampling.CrossAttention(make_config(CrossAttentionComponent, {**given, **options})), seed)

    @staticmethod
    def gated(hidden_size: int, *, seed: int = 0) -> GatedFusion:
        """Two features of one shape."""
        return GatedFusion(hidden_size, seed=seed)

    @staticmethod
    def perceiver(hidden_size: int, num_latents: int = 64, *, seed: int = 0, **options: Any) -> resampling.Perceiver:
        """[B, any length, C] -> [B, num_latents, C]."""
        given = {"kind": "fusion.perceiver", "hidden_size": hidden_size, "num_latents": num_latents}
        return fill_seeded(resampling.Perceiver(make_config(PerceiverComponent, {**given, **options})), seed)

    @staticmethod
    def concat(hidden_size: int, *, num_inputs: int = 2, seed: int = 0) -> ConcatFusion:
        """Several features of one shape."""
        return ConcatFusion(hidden_size, num_inputs=num_inputs, seed=seed)
