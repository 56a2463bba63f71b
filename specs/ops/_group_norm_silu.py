"""GroupNorm and the SiLU behind it as one op: the eager meaning, the fake-tensor rule and the wrapper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specs.ops._plain import is_opened


def _compute_group_norm_silu(x: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:
    return functional.silu(functional.group_norm(x, groups, weight_C, bias_C, eps)).contiguous()


@torch.library.custom_op("metagen::group_norm_silu", _compute_group_norm_silu, mutates_args=()).register_fake
def _group_norm_silu_fake(x: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def group_norm_silu(x: Tensor, weight_C: Tensor, bias_C: Tensor, *, groups: int, eps: float) -> Tensor:
    """silu(GroupNorm(x) weight + bias) (Wu & He 2018), as it opens every half of a U-Net's or VAE's ResNet block.

    Args:
        x: [B, C, *spatial], of one to three spatial dimensions; `groups` divides C.
        weight_C: one a channel, like `bias_C`.
        eps: added to the variance of a group; Stable Diffusion's U-Net uses 1e-5, its VAE 1e-6.

    Returns:
        [B, C, *spatial].

    Raises:
        ValueError: the shapes do not fit.
    """
    channels = x.shape[1] if x.dim() in (3, 4, 5) else 0
    if not channels or channels % groups or tuple(weight_C.shape) != (channels,) or weight_C.shape != bias_C.shape:
        raise ValueError(
            f"group_norm_silu takes x [B, C, *spatial] with C divisible by groups = {groups}, and weight and bias [C],"
            f" got {list(x.shape)}, {list(weight_C.shape)} and {list(bias_C.shape)}"
        )
    run = _compute_group_norm_silu if is_opened() else torch.ops.metagen.group_norm_silu
    result: Tensor = run(x, weight_C, bias_C, groups, eps)
    return result
