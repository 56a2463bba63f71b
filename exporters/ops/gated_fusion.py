"""MetagenGatedFusion: g a + (1 - g) b with g = sigmoid([a; b] W^T + bias), the body in standard ONNX (Arevalo 2017)."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset, standard_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(a: Any, b: Any, gate_weight: Any, gate_bias: Any) -> Any:
    """g a + (1 - g) b with g = sigmoid([a; b] gate + bias), gate [2C, C]."""
    weight = standard_opset().Transpose(gate_weight, perm=[1, 0])  # once, while exporting: see gated_linear
    return metagen_opset().MetagenGatedFusion(a, b, weight, gate_bias)


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    a, b, gate_weight, gate_bias = inputs
    assert a is not None and b is not None and gate_weight is not None and gate_bias is not None
    both = body("Concat", a, b, axis=-1)
    logits = body("Add", body("MatMul", both, gate_weight), gate_bias)
    gate = body("Sigmoid", logits)
    rest = body("Mul", body("Sub", body.constant(1.0), gate), b)
    return [body("Add", body("Mul", gate, a), rest)]


GATED_FUSION = CustomOp(
    name="MetagenGatedFusion",
    torch_op=torch.ops.metagen.gated_fusion.default,
    inputs={"a": "T", "b": "T", "gate_weight": "T", "gate_bias": "T"},
    outputs=("out",),
    attributes={},
    translate=_translate,
    build_body=_build_body,
)
