"""act(x Wg^T) * (x Wu^T): the eager meaning, the fake-tensor rule and the wrapper."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from specs.ops._plain import is_opened

GateActivation = Literal["silu", "gelu", "gelu_tanh"]


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return functional.silu(x)
    if activation == "gelu":
        return functional.gelu(x)
    if activation == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    raise ValueError(f"activation must be silu, gelu or gelu_tanh, got {activation!r}")


def _compute_gated_linear(x: Tensor, gate_weight_FC: Tensor, up_weight_FC: Tensor, activation: str) -> Tensor:
    return _activate(functional.linear(x, gate_weight_FC), activation) * functional.linear(x, up_weight_FC)


@torch.library.custom_op("metagen::gated_linear", _compute_gated_linear, mutates_args=()).register_fake
def _gated_linear_fake(x: Tensor, gate_weight_FC: Tensor, up_weight_FC: Tensor, activation: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], gate_weight_FC.shape[0]))


def gated_linear(x: Tensor, gate_weight_FC: Tensor, up_weight_FC: Tensor, *, activation: GateActivation) -> Tensor:
    """act(x Wg^T) * (x Wu^T): SwiGLU with silu, GEGLU with gelu (Shazeer 2020). [..., C] -> [..., F]."""
    run = _compute_gated_linear if is_opened() else torch.ops.metagen.gated_linear
    result: Tensor = run(x, gate_weight_FC, up_weight_FC, activation)
    return result
