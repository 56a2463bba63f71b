"""MetagenGatedLinear: act(x Wg^T) * (x Wu^T), the body in standard ONNX (SwiGLU, GEGLU; Shazeer 2020).

The node takes its weights as MatMul does, [C, F]: torch's [F, C] is transposed once while exporting, so that the
portable graph and every typed one share the same stored bytes.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset, standard_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(x: Any, gate_weight: Any, up_weight: Any, activation: str) -> Any:
    """act(x gate) * (x up), weights [C, F]; activation is silu, gelu (exact) or gelu_tanh."""
    opset = standard_opset()
    weights = (opset.Transpose(weight, perm=[1, 0]) for weight in (gate_weight, up_weight))
    return metagen_opset().MetagenGatedLinear(x, *weights, activation=activation)


def _activate(body: Body, x: ir.Value, activation: str) -> ir.Value:
    if activation == "silu":
        return body("Mul", x, body("Sigmoid", x))
    if activation == "gelu":
        # the spelling that TensorRT and ONNX Runtime fuse: x * (erf(x / sqrt 2) + 1) * 0.5
        erf = body("Erf", body("Div", x, body.constant(math.sqrt(2.0))))
        return body("Mul", body("Mul", x, body("Add", erf, body.constant(1.0))), body.constant(0.5))
    assert activation == "gelu_tanh", activation
    cubic = body("Mul", body("Mul", body("Mul", x, x), x), body.constant(0.044715))
    inner = body("Mul", body("Add", x, cubic), body.constant(math.sqrt(2.0 / math.pi)))
    half = body("Mul", x, body.constant(0.5))
    return body("Mul", half, body("Add", body("Tanh", inner), body.constant(1.0)))


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    x, gate_weight, up_weight = inputs
    assert x is not None and gate_weight is not None and up_weight is not None
    gate, up = body("MatMul", x, gate_weight), body("MatMul", x, up_weight)
    return [body("Mul", _activate(body, gate, str(attributes["activation"])), up)]


GATED_LINEAR = CustomOp(
    name="MetagenGatedLinear",
    torch_op=torch.ops.metagen.gated_linear.default,
    inputs={"x": "T", "gate_weight": "T", "up_weight": "T"},
    outputs=("out",),
    attributes={"activation": ir.AttributeType.STRING},
    translate=_translate,
    build_body=_build_body,
)
