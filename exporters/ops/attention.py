"""MetagenAttention: softmax(scale q k^T + bias + mask) v, the body in standard ONNX.

The scale stands on q, before the first MatMul: that is the pattern TensorRT fuses (`MatMul -> Add -> Softmax ->
MatMul`). `groups` is H / K, written on the node because a body cannot see static shapes.

Not here: what a target turns the node into (`exporters/passes/`), nor the cache (`cached_attention.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import MASKED, Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(q: Any, k: Any, v: Any, bias: Any, scale: float, causal: bool, window: int, softcap: float = 0.0) -> Any:
    """softmax(scale q k^T + bias) v; query t sees keys s <= t when causal, and s > t - window when window > 0.

    Where softcap is given, scores become softcap * tanh(scores / softcap) before the bias.
    """
    inputs = (q, k, v) if bias is None else (q, k, v, bias)
    capped = {"softcap": softcap} if softcap else {}
    return metagen_opset().MetagenAttention(
        *inputs, scale=scale, causal=int(causal), window=window, groups=q.shape[1] // k.shape[1], **capped
    )


def repeat_heads(body: Body, x_BKSD: ir.Value, groups: int) -> ir.Value:
    """[B, K, S, D] -> [B, K * groups, S, D], each head `groups` times in a row."""
    if groups == 1:
        return x_BKSD
    shape_BHSD = body("Mul", body("Shape", x_BKSD), body.constant([1, groups, 1, 1]))
    x_BKGSD = body("Expand", body("Unsqueeze", x_BKSD, body.constant([2])), body.constant([1, 1, groups, 1, 1]))
    return body("Reshape", x_BKGSD, shape_BHSD)


def attend(
    body: Body, q: ir.Value, k: ir.Value, v: ir.Value, attributes: Attributes, biases: Sequence[ir.Value]
) -> ir.Value:
    """The pattern itself; q, k and v have the same number of heads, biases broadcast to BHTS."""
    scale, softcap = float(attributes["scale"]), float(attributes.get("softcap", 0.0))
    scores = body("MatMul", body("Mul", q, body.constant(scale)), body("Transpose", k, perm=[0, 1, 3, 2]))
    if softcap:
        scores = body("Mul", body("Tanh", body("Div", scores, body.constant(softcap))), body.constant(softcap))
    for bias in biases:
        scores = body("Add", scores, bias)
    return body("MatMul", body("Softmax", scores, axis=-1), v)


def mask_unless(body: Body, visible: ir.Value) -> ir.Value:
    """An additive mask: 0 where `visible`, else the lowest float."""
    return body("Where", visible, body.constant(0.0), body.constant(MASKED))


def _mask_positions(body: Body, q: ir.Value, k: ir.Value, *, causal: bool, window: int) -> list[ir.Value]:
    if not causal and not window:
        return []
    query_T1 = body("Unsqueeze", body.count_up(body.dim(q, 2)), body.constant([1]))
    key_1S = body("Unsqueeze", body.count_up(body.dim(k, 2)), body.constant([0]))
    rules = []
    if causal:
        rules.append(body("LessOrEqual", key_1S, query_T1))
    if window:
        rules.append(body("Greater", key_1S, body("Sub", query_T1, body.constant(window))))
    return [mask_unless(body, rules[0] if len(rules) == 1 else body("And", *rules))]


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    q, k, v, bias = inputs
    assert q is not None and k is not None and v is not None
    groups = int(attributes["groups"])
    masks = _mask_positions(body, q, k, causal=bool(attributes["causal"]), window=int(attributes["window"]))
    biases = [*([bias] if bias is not None else []), *masks]
    return [attend(body, q, repeat_heads(body, k, groups), repeat_heads(body, v, groups), attributes, biases)]


ATTENTION = CustomOp(
    name="MetagenAttention",
    torch_op=torch.ops.metagen.attention.default,
    inputs={"q": "T", "k": "T", "v": "T", "bias?": "T"},
    outputs=("out",),
    attributes={
        "scale": ir.AttributeType.FLOAT,
        "causal": ir.AttributeType.INT,
        "window": ir.AttributeType.INT,
        "groups": ir.AttributeType.INT,
        "softcap?": ir.AttributeType.FLOAT,
    },
    translate=_translate,
    build_body=_build_body,
)
