"""One range a row: x = z * r, with r = max |x| over a row and z in [-1, 1], whatever the data.

    x [.., K] --ReduceMax |x|--> r [.., 1]        z = x / r        x W = (z W) * r

A product treats every row (a token) for itself, so the factor comes out of it again, exactly but for rounding. A tensor
whose rows differ much in size then needs no common step: z has the one scale 1/127, known without any data, and no row
depends on the rows beside it. What an activation never falls below is subtracted first, where integers are unsigned:
z is in [0, 1] then and has a bit more. Per-token quantisation as in ZeroQuant (Yao et al. 2022, arXiv:2206.01861), by
standard operators.

Not for convolutions: their sums run over several positions, and over those r differs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes.int8.weighted import WeightedNode
from exporters.passes.shared.derived import read_stored
from exporters.passes.shared.graph import Builder, is_onnx

#: The least values of activations, a little below: GELU has -0.16997, its tanh form -0.17004, x sigmoid(x) -0.27847.
_LOWEST = {"Gelu": -0.1701, "Relu": 0.0, "Sigmoid": 0.0, "Softmax": 0.0, "Softplus": 0.0}
_LOWEST_SILU = -0.2785
#: Reductions take their axes as an input from here on.
_AXES_INPUT = 18


def divide_rows(
    build: Builder, value: ir.Value, *, factor: np.ndarray | None, lowest: float | None, opset: int, smallest: float
) -> tuple[ir.Value, ir.Value]:
    """Append the nodes that give (z, r) of a float32 `value` of rank 2 or more.

    Args:
        factor: [K]: z and r are those of x * factor then (`scaling`).
        lowest: x is never below it (`find_lowest`): z and r are those of x - lowest then, z in [0, 1].
        opset: of the standard domain.
        smallest: r of rows below it, so that a row of zeros is divided by something.
    """
    rows = None if value.shape is None else ir.Shape([*tuple(value.shape)[:-1], 1])
    if factor is not None:
        channels = build.constant(factor.astype(np.float32), f"{value.name}/channels")
        value = build("Mul", value, channels, dtype=ir.DataType.FLOAT, shape=value.shape)
    if lowest:
        offset = build.constant(np.array(-lowest, np.float32), f"{value.name}/offset")
        value = build("Add", value, offset, dtype=ir.DataType.FLOAT, shape=value.shape)
    ends = [_reduce(build, "ReduceMax", value, rows, opset)]
    if lowest is None:
        least = _reduce(build, "ReduceMin", value, rows, opset)
        ends.append(build("Neg", least, dtype=ir.DataType.FLOAT, shape=rows))
    floor = build.constant(np.array(smallest, np.float32), f"{value.name}/smallest_row")
    scale = build("Max", *ends, floor, dtype=ir.DataType.FLOAT, shape=rows)
    return build("Div", value, scale, dtype=ir.DataType.FLOAT, shape=value.shape), scale


def find_lowest(value: ir.Value) -> float | None:
    """What `value` is never below, by the activation that makes it."""
    node = value.producer()
    if node is None:
        return None
    if is_onnx(node, "Mul") and any(_is_sigmoid(*pair) for pair in (node.inputs, reversed(node.inputs))):
        return _LOWEST_SILU
    return _LOWEST.get(node.op_type) if is_onnx(node, node.op_type) else None


def _is_sigmoid(value: ir.Value | None, gate: ir.Value | None) -> bool:
    """Whether gate = sigmoid(value)."""
    node = None if gate is None else gate.producer()
    return node is not None and is_onnx(node, "Sigmoid") and node.inputs[0] is value


def add_loud_channels(
    build: Builder, product: ir.Value, value: ir.Value, weighted: WeightedNode, loud: np.ndarray
) -> ir.Value:
    """product + value[.., L] W[L]: what `divide_rows` left out, by a factor of 0, in the graph's high precision."""
    stored = read_stored(weighted.tensor)
    rows = (stored.T if weighted.channel_axis == 0 else stored)[loud].astype(np.float32)
    shape = None if value.shape is None else ir.Shape([*tuple(value.shape)[:-1], len(loud)])
    picked = build.constant(loud.astype(np.int64), f"{weighted.weight.name}/loud_channels")
    channels = build("Gather", value, picked, dtype=ir.DataType.FLOAT, shape=shape, attributes={"axis": -1})
    weight = build.constant(rows, f"{weighted.weight.name}/loud")
    part = build("MatMul", channels, weight, dtype=ir.DataType.FLOAT, shape=product.shape)
    return build("Add", product, part, dtype=ir.DataType.FLOAT, shape=product.shape)


def _reduce(build: Builder, op_type: str, value: ir.Value, rows: ir.Shape | None, opset: int) -> ir.Value:
    if opset >= _AXES_INPUT:
        axes = build.constant(np.array([-1], np.int64), f"{value.name}/last_axis")
        return build(op_type, value, axes, dtype=ir.DataType.FLOAT, shape=rows, attributes={"keepdims": 1})
    out = build(op_type, value, dtype=ir.DataType.FLOAT, shape=rows, attributes={"keepdims": 1})
    build.nodes[-1].attributes["axes"] = ir.AttrInt64s("axes", [-1])
    return out
