"""LayerNorm whose scale and shift come from a condition: the eager meaning, the fake-tensor rule and the wrapper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specs.ops._plain import is_opened


def _compute_ada_layer_norm(x_BTC: Tensor, shift_B1C: Tensor, scale_B1C: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x_BTC, x_BTC.shape[-1:], eps=eps) * (1 + scale_B1C) + shift_B1C


@torch.library.custom_op("metagen::ada_layer_norm", _compute_ada_layer_norm, mutates_args=()).register_fake
def _ada_layer_norm_fake(x_BTC: Tensor, shift_B1C: Tensor, scale_B1C: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x_BTC, memory_format=torch.contiguous_format)


def ada_layer_norm(x_BTC: Tensor, shift_BC: Tensor, scale_BC: Tensor, *, eps: float) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, the norm over C without weights of its own (adaLN of DiT, Peebles & Xie 2022).

    Args:
        shift_BC: one row a sample, [B, C] or [B, 1, C]; or one a token, [B, T, C].
        scale_BC: of the same shape.
        eps: added to the variance; DiT, PixArt and SD3 use 1e-6.

    Returns:
        [B, T, C].

    Raises:
        ValueError: the shapes do not fit.
    """
    if x_BTC.dim() != 3 or shift_BC.shape != scale_BC.shape or shift_BC.dim() not in (2, 3):
        raise ValueError(
            "ada_layer_norm takes x [B, T, C], and shift and scale both [B, C] or [B, 1, C],"
            f" got {list(x_BTC.shape)}, {list(shift_BC.shape)} and {list(scale_BC.shape)}"
        )
    shift_B1C, scale_B1C = (t if t.dim() == 3 else t.unsqueeze(1) for t in (shift_BC, scale_BC))
    run = _compute_ada_layer_norm if is_opened() else torch.ops.metagen.ada_layer_norm
    result: Tensor = run(x_BTC, shift_B1C, scale_B1C, eps)
    return result
