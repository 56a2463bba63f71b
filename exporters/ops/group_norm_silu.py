"""MetagenGroupNormSilu: silu(GroupNorm(x) weight + bias), the body in standard ONNX.

    [B, C, *spatial] -Reshape-> [B, groups, rest] -InstanceNormalization-> -Reshape-> * weight + bias -> y sigmoid(y)

The norm stays one operator, which every target computes with float32 statistics. InstanceNormalization exists
everywhere; GroupNormalization changed what its scale means between opset 18 and 21, so it is a lowering
(`exporters/passes/lower_group_norm.py`). `rank` is that of x: a body cannot see it.

ONNX Runtime adds up the whole group one value after the other, and loses what torch keeps by adding parts: of 524288
normal values the largest error is 2.0e-5, torch's 6.3e-7. A group of LARGE values or more is therefore summed in two
steps, over `rows` of `row` values each and then over the rows (8.4e-7 there); the mean goes before the square:

    [B, groups, rows, row] -> x - mean(mean(x)) = d -> d / sqrt(mean(mean(d^2)) + eps)

At 524288 values that is 4.8 ms against 2.3 (one thread); the convolution behind it takes a hundred times as long.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen

#: Values of a group from which on one sum after the other is too coarse.
LARGE = 1 << 17
_FEWEST_ROWS = 64  # fewer leave rows that are long themselves


def _translate(x: Any, weight: Any, bias: Any, groups: int, eps: float) -> Any:
    """silu(GroupNorm(x) weight + bias), weight and bias one a channel (axis 1)."""
    attributes = {"groups": groups, "eps": eps, "rank": len(x.shape)}
    if rows := split_group(tuple(x.shape)[1:], groups):
        attributes |= {"rows": rows[0], "row": rows[1]}
    return metagen_opset().MetagenGroupNormSilu(x, weight, bias, **attributes)


def split_group(sizes: tuple[Any, ...], groups: int) -> tuple[int, int] | None:
    """(rows, values in a row) in which a large group is summed, as near to a square as its size divides; None for none.

    Args:
        sizes: channels and spatial sizes; one that is not known leaves the whole group.
    """
    if not all(isinstance(size, int) for size in sizes):
        return None
    count = math.prod(sizes) // groups
    rows = next(divisor for divisor in range(math.isqrt(count), 0, -1) if count % divisor == 0)
    return (rows, count // rows) if count >= LARGE and rows >= _FEWEST_ROWS else None


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    x, weight_C, bias_C = inputs
    assert x is not None and weight_C is not None and bias_C is not None
    groups, rank, eps = int(attributes["groups"]), int(attributes["rank"]), float(attributes["eps"])
    rows, row = int(attributes.get("rows", 0)), int(attributes.get("row", 0))
    grouped = _normalise_rows(body, x, (groups, rows, row), eps) if rows else _normalise(body, x, groups, eps)
    normal = body("Reshape", grouped, body("Shape", x))
    spatial = body.constant(list(range(1, rank - 1)))
    weight, bias = body("Unsqueeze", weight_C, spatial), body("Unsqueeze", bias_C, spatial)
    affine = body("Add", body("Mul", normal, weight), bias)
    return [body("Mul", affine, body("Sigmoid", affine))]


def _normalise(body: Body, x: ir.Value, groups: int, eps: float) -> ir.Value:
    x_BGR = body("Reshape", x, body.constant([0, groups, -1]))
    ones, zeros = body.constant([1.0] * groups), body.constant([0.0] * groups)
    return body("InstanceNormalization", x_BGR, ones, zeros, epsilon=eps)


def _normalise_rows(body: Body, x: ir.Value, sizes: tuple[int, int, int], eps: float) -> ir.Value:
    """`sizes`: groups, rows of each, values of a row."""
    x_BGRS = body("Reshape", x, body.constant([0, *sizes]))
    away = body("Sub", x_BGRS, _average(body, x_BGRS, sizes))
    variance = _average(body, body("Mul", away, away), sizes)
    return body("Div", away, body("Sqrt", body("Add", variance, body.constant(eps))))


def _average(body: Body, x_BGRS: ir.Value, sizes: tuple[int, int, int]) -> ir.Value:
    """[B, groups, 1, 1]. Not ReduceMean: it takes its axes in another way from opset 18 on."""
    rows = body("Div", body("ReduceSum", x_BGRS, body.constant([3])), body.constant(float(sizes[2])))
    return body("Div", body("ReduceSum", rows, body.constant([2])), body.constant(float(sizes[1])))


GROUP_NORM_SILU = CustomOp(
    name="MetagenGroupNormSilu",
    torch_op=torch.ops.metagen.group_norm_silu.default,
    inputs={"x": "T", "weight": "T", "bias": "T"},
    outputs=("out",),
    attributes={
        "groups": ir.AttributeType.INT,
        "eps": ir.AttributeType.FLOAT,
        "rank": ir.AttributeType.INT,
        "rows?": ir.AttributeType.INT,
        "row?": ir.AttributeType.INT,
    },
    translate=_translate,
    build_body=_build_body,
)
