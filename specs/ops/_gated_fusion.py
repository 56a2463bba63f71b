"""g a + (1 - g) b with a learned gate: the eager meaning, the fake-tensor rule and the wrapper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specs.ops._plain import is_opened


def _compute_gated_fusion(a: Tensor, b: Tensor, gate_weight_CG: Tensor, gate_bias_C: Tensor) -> Tensor:
    gate = functional.linear(torch.cat([a, b], dim=-1), gate_weight_CG, gate_bias_C).sigmoid()
    return gate * a + (1 - gate) * b


@torch.library.custom_op("metagen::gated_fusion", _compute_gated_fusion, mutates_args=()).register_fake
def _gated_fusion_fake(a: Tensor, b: Tensor, gate_weight_CG: Tensor, gate_bias_C: Tensor) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def gated_fusion(a: Tensor, b: Tensor, gate_weight_CG: Tensor, gate_bias_C: Tensor) -> Tensor:
    """g a + (1 - g) b with g = sigmoid([a; b] W^T + bias) (Arevalo et al. 2017). a, b [..., C]; G = 2C."""
    run = _compute_gated_fusion if is_opened() else torch.ops.metagen.gated_fusion
    result: Tensor = run(a, b, gate_weight_CG, gate_bias_C)
    return result
