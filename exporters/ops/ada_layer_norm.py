"""MetagenAdaLayerNorm: LayerNorm(x) (1 + scale) + shift, the body in standard ONNX (adaLN of DiT).

The norm stays one operator, LayerNormalization, which every target computes with float32 statistics: spelled as means
of squares it would overflow float16 from |x| = 256. It takes weights, so the body gives it ones; `channels` is written
on the node because a body cannot see static shapes. LayerNormalization is the same from opset 17 on, and no target
is lowered further.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(x: Any, shift: Any, scale: Any, eps: float) -> Any:
    """LayerNorm(x) (1 + scale) + shift, the norm over the last axis without weights; shift and scale broadcast to x."""
    return metagen_opset().MetagenAdaLayerNorm(x, shift, scale, eps=eps, channels=x.shape[-1])


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    x, shift, scale = inputs
    assert x is not None and shift is not None and scale is not None
    ones_C = body.constant([1.0] * int(attributes["channels"]))
    normal = body("LayerNormalization", x, ones_C, axis=-1, epsilon=float(attributes["eps"]))
    return [body("Add", body("Mul", normal, body("Add", scale, body.constant(1.0))), shift)]


ADA_LAYER_NORM = CustomOp(
    name="MetagenAdaLayerNorm",
    torch_op=torch.ops.metagen.ada_layer_norm.default,
    inputs={"x": "T", "shift": "T", "scale": "T"},
    outputs=("out",),
    attributes={"eps": ir.AttributeType.FLOAT, "channels": ir.AttributeType.INT},
    translate=_translate,
    build_body=_build_body,
)
