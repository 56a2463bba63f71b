"""MetagenGroupNormSilu: silu(GroupNorm(x) weight + bias), the body in standard ONNX.

    [B, C, *spatial] -Reshape-> [B, groups, rest] -InstanceNormalization-> -Reshape-> * weight + bias -> y sigmoid(y)

The norm stays one operator, which every target computes with float32 statistics. InstanceNormalization exists
everywhere; GroupNormalization changed what its scale means between opset 18 and 21, so it is a lowering
(`exporters/passes/lower_group_norm.py`). `rank` is that of x: a body cannot see it.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(x: Any, weight: Any, bias: Any, groups: int, eps: float) -> Any:
    """silu(GroupNorm(x) weight + bias), weight and bias one a channel (axis 1)."""
    return metagen_opset().MetagenGroupNormSilu(x, weight, bias, groups=groups, eps=eps, rank=len(x.shape))


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    x, weight_C, bias_C = inputs
    assert x is not None and weight_C is not None and bias_C is not None
    groups, rank = int(attributes["groups"]), int(attributes["rank"])
    x_BGR = body("Reshape", x, body.constant([0, groups, -1]))
    ones, zeros = body.constant([1.0] * groups), body.constant([0.0] * groups)
    normal_BGR = body("InstanceNormalization", x_BGR, ones, zeros, epsilon=float(attributes["eps"]))
    normal = body("Reshape", normal_BGR, body("Shape", x))
    spatial = body.constant(list(range(1, rank - 1)))
    weight, bias = body("Unsqueeze", weight_C, spatial), body("Unsqueeze", bias_C, spatial)
    affine = body("Add", body("Mul", normal, weight), bias)
    return [body("Mul", affine, body("Sigmoid", affine))]


GROUP_NORM_SILU = CustomOp(
    name="MetagenGroupNormSilu",
    torch_op=torch.ops.metagen.group_norm_silu.default,
    inputs={"x": "T", "weight": "T", "bias": "T"},
    outputs=("out",),
    attributes={"groups": ir.AttributeType.INT, "eps": ir.AttributeType.FLOAT, "rank": ir.AttributeType.INT},
    translate=_translate,
    build_body=_build_body,
)
