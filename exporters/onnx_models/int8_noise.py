"""The noise of rounding to 8 bits, written into a float32 graph.

    x --Clip to its range--> x + u s, u drawn from [-1/2, 1/2)      s = range / 127, of the tensor or of each row
    W -------------------->  W + u s                                s = largest |W| of an output channel / 127

The same products, ranges and steps as int8 has: no zero point, scale or rewrite of a typed graph has a part in it.
Smoothed and split channels (`passes.int8.scaling`) round finer, so that the floor lies above them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.passes import Range, copy_for_int8
from exporters.passes.int8.row_scale import divide_rows
from exporters.passes.int8.weighted import WeightedNode, find_weighted, quantize_weight
from exporters.passes.shared.graph import Builder, Namer, add_initializer

#: What one draw of a graph and the next are apart: more than it has random nodes; a float counts on without rounding.
SEEDS_APART = 1e5
_LEVELS = 127
_SMALLEST_ROW = float(np.finfo(np.float32).tiny)


def add_int8_noise(model: ir.Model, seed: int, *, ranges: Mapping[str, Range], by_rows: bool) -> ir.Model | None:
    """A copy with noise; None where nothing would be rounded.

    Args:
        by_rows: MatMul and Gemm take the range of each row, as on CPUs; else all have their calibrated range.
    """
    noisy = copy_for_int8(model)
    return noisy if _add_noise(noisy, seed, ranges, by_rows=by_rows) else None


def _add_noise(model: ir.Model, seed: int, ranges: Mapping[str, Range], *, by_rows: bool) -> int:
    """Change `model` in place; returns how many products are rounded."""
    namer, random = Namer(model), np.random.default_rng(seed)
    rounded: dict[ir.Value, ir.Value] = {}
    weights: dict[tuple[ir.Value, int | None], ir.Value] = {}
    found = [
        weighted
        for weighted in find_weighted(model.graph)
        if not weighted.left_out
        and weighted.activation.name in ranges
        and not (by_rows and "Conv" in weighted.node.op_type)
    ]
    for weighted in found:
        value, key = weighted.activation, (weighted.weight, weighted.channel_axis)
        if value not in rounded:
            build = Builder(model.graph, weighted.node, namer)
            size = _measure_rows(build, value, model.opset_imports[""]) if by_rows else None
            rounded[value] = _round(
                build, value, ranges[value.name or ""], size, seed=seed * SEEDS_APART + len(rounded)
            )
            build.insert_before(weighted.node)
        if key not in weights:
            tensor = ir.tensor(_move_weight(weighted, random))
            weights[key] = add_initializer(model.graph, tensor, namer(f"{weighted.weight.name}/rounded"))
        weighted.node.replace_input_with(0, rounded[value])
        weighted.node.replace_input_with(1, weights[key])
    return len(found)


def _measure_rows(build: Builder, value: ir.Value, opset: int) -> ir.Value:
    _, size = divide_rows(build, value, factor=None, lowest=None, opset=opset, smallest=_SMALLEST_ROW)
    return size


def _round(build: Builder, value: ir.Value, span: Range, size: ir.Value | None, *, seed: float) -> ir.Value:
    """`value` with noise of a step of its rows' `size`, or within `span` and with noise of a step of that."""
    noise = build("RandomUniformLike", value, attributes={"low": -0.5, "high": 0.5, "seed": seed, "dtype": 1})
    if size is None:
        size = build.constant(np.array(max(abs(span.low), abs(span.high)), np.float32))
        value = build("Min", build("Max", value, build("Neg", size)), size)
    step = build("Div", size, build.constant(np.array(_LEVELS, np.float32)))
    return build("Add", value, build("Mul", noise, step))


def _move_weight(weighted: WeightedNode, random: np.random.Generator) -> NDArray[np.float32]:
    _, scale = quantize_weight(weighted.tensor, weighted.channel_axis)
    array = weighted.tensor.numpy().astype(np.float32)
    if weighted.channel_axis is not None:
        shape = [1] * array.ndim
        shape[weighted.channel_axis] = -1
        scale = scale.reshape(shape)
    moved: NDArray[np.float32] = (array + random.uniform(-0.5, 0.5, array.shape) * scale).astype(np.float32)
    return moved
