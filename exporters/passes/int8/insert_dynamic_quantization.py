"""InsertDynamicQuantization: INT8 for ONNX Runtime on CPUs, without calibration data.

    MatMul(x, W)  ->  z, r = rows of x divided by their largest value (`row_scale`)
                      q = QuantizeLinear(z, 1/127, 128): uint8      com.microsoft::MatMulIntegerToFloat(q, int8 W) * r

Activations have one range a row, taken from the row itself at run time; weights are int8 per column. A row's result
does not depend on the rows beside it: neither on a batch, nor on a loud token. No data is needed; with some, loud
channels are smoothed or split off where that was measured to help (`scaling`). Convolutions stay float32: there is no
fused int8 kernel for them here, and the unfused ConvInteger was not measured.

Measured on all-MiniLM-L6-v2 (benchmarks/RESULTS.md), where a few tokens are 15 times as large as the others: with one
range a tensor (`DynamicQuantizeMatMul`) single token features are off by 0.64 of their rms, with one a row by 0.38,
with loud channels out of the way by 0.2.

uint8 and not int8: without AVX-VNNI-INT8 or AMX, MLAS multiplies int8 by int8 twenty times slower (ONNX Runtime
1.31). On CPUs without VNNI or AMX the int8 product of AVX2 can saturate; the graph is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from exporters.passes.int8.ranges import find_ranges
from exporters.passes.int8.row_scale import add_loud_channels, divide_rows, find_lowest
from exporters.passes.int8.scaling import Scaling, choose_scalings
from exporters.passes.int8.weighted import WeightedNode, find_weighted, quantize_weight, scale_rows
from exporters.passes.shared.derived import is_finite, transpose_lazily
from exporters.passes.shared.graph import Builder, Namer, add_initializer, notes_of, read_constant, take_over

_DOMAIN = "com.microsoft"
_LEVELS, _SIGNED_LEVELS, _MIDDLE = 255, 127, 128
_SMALLEST_ROW = float(np.finfo(np.float32).tiny)


class InsertDynamicQuantization(ir.passes.InPlacePass):
    """Fires in the main graph on MatMul and Gemm with a constant 2-D weight; logs a reason for every other one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        notes, taken = notes_of(model), []
        for weighted in find_weighted(model.graph):
            if reason := weighted.left_out or _check(weighted):
                notes.log.append(f"InsertDynamicQuantization: '{weighted.node.name}' is not int8: {reason}")
            else:
                taken.append(weighted)
        scalings = choose_scalings(model, taken, find_ranges(model), static=False)
        inserter = _Inserter(model, scalings)
        ways = [scalings[weighted.activation.name or ""].describe() for weighted in taken]  # rewriting renames values
        for weighted, way in zip(taken, ways, strict=True):
            notes.log.append(f"InsertDynamicQuantization: '{weighted.node.name}' is int8 {way}")
            inserter.rewrite(weighted)
        if taken:
            model.opset_imports[_DOMAIN] = 1
        notes.log.append(f"InsertDynamicQuantization: {len(taken)} nodes take int8")
        return ir.passes.PassResult(model, modified=bool(taken))


def _check(weighted: WeightedNode) -> str:
    node = weighted.node
    if node.op_type not in ("MatMul", "Gemm"):
        return f"ONNX Runtime has no fused dynamic int8 kernel for {node.op_type}"
    if node.op_type == "Gemm" and any(
        name in node.attributes and node.attributes[name].as_float() != 1 for name in ("alpha", "beta")
    ):
        return "its alpha and beta are not 1"
    if weighted.activation.dtype != ir.DataType.FLOAT or weighted.activation.shape is None:
        return "the type and rank of its input are not known"
    if len(weighted.activation.shape) < 2:
        return "its input is a vector"
    if not is_finite(weighted.tensor):
        return "its weight is not finite"
    return ""


@dataclass(frozen=True)
class _Rows:
    """An activation as uint8: q = z / step + zero, and r. Without `lowest` z is in [-1, 1], else in [0, 1]."""

    quantized: ir.Value
    size: ir.Value
    step: ir.Value
    zero: ir.Value
    lowest: float | None


class _Inserter:
    """Shares the quantised rows of an activation, and one int8 tensor a weight."""

    def __init__(self, model: ir.Model, scalings: Mapping[str, Scaling]) -> None:
        self.graph, self.namer = model.graph, Namer(model)
        self.scalings, self.opset = scalings, model.opset_imports[""]
        self.rows: dict[ir.Value, _Rows] = {}
        self.weights: dict[tuple[ir.Value, int | None], tuple[ir.Value, ir.Value]] = {}
        self.constants: dict[float, ir.Value] = {}

    def rewrite(self, weighted: WeightedNode) -> None:
        node, weight = weighted.node, weighted.weight
        build = Builder(self.graph, node, self.namer)
        activation = node.inputs[0]  # not weighted.activation: the product before it may have been rewritten since
        assert activation is not None
        if activation not in self.rows:
            self.rows[activation] = self._quantize_rows(build, activation)
        key = (weight, weighted.channel_axis)
        if key not in self.weights:
            self.weights[key] = self._store_weight(build, weighted, activation)
        rows, (int8, column_scale) = self.rows[activation], self.weights[key]
        make = partial(build, dtype=ir.DataType.FLOAT, shape=node.outputs[0].shape)
        operands = (rows.quantized, int8, rows.step, column_scale, rows.zero)
        out = make("MatMulIntegerToFloat", *operands, domain=_DOMAIN)
        product = build.nodes[-1]
        out = make("Mul", out, rows.size)
        if rows.lowest:
            offset = rows.lowest * _sum_columns(int8, column_scale)
            out = make("Add", out, build.constant(offset, f"{weight.name}/lowest"))
        loud = self._find_scaling(activation).loud
        if loud is not None:
            out = add_loud_channels(build, out, activation, weighted, loud)
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is not None:
            out = make("Add", out, bias)
        build.insert_before(node)
        name = node.name
        take_over(self.graph, [node], product, out)
        product.name = name
        if weight.is_initializer() and not weight.uses() and not weight.is_graph_output():
            assert weight.name is not None
            del self.graph.initializers[weight.name]

    def _quantize_rows(self, build: Builder, activation: ir.Value) -> _Rows:
        lowest = find_lowest(activation)
        factor = self._find_scaling(activation).factor
        quotient, size = divide_rows(
            build, activation, factor=factor, lowest=lowest, opset=self.opset, smallest=_SMALLEST_ROW
        )
        levels, middle = (_SIGNED_LEVELS, _MIDDLE) if lowest is None else (_LEVELS, 0)
        step = self._share(build, np.array(1 / levels, np.float32), f"int8/step_{levels}")
        zero = self._share(build, np.array(middle, np.uint8), f"int8/zero_{middle}")
        quantized = build("QuantizeLinear", quotient, step, zero, dtype=ir.DataType.UINT8, shape=activation.shape)
        return _Rows(quantized=quantized, size=size, step=step, zero=zero, lowest=lowest)

    def _share(self, build: Builder, array: np.ndarray, name: str) -> ir.Value:
        key = float(array)
        if key not in self.constants:
            self.constants[key] = build.constant(array, name)
        return self.constants[key]

    def _find_scaling(self, activation: ir.Value) -> Scaling:
        return self.scalings[activation.name or ""]

    def _store_weight(self, build: Builder, weighted: WeightedNode, activation: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The int8 weight as [K, N], and its scale per column."""
        name, axis = weighted.weight.name, weighted.channel_axis
        factor = self._find_scaling(activation).weights
        quantized, scales = quantize_weight(scale_rows(weighted.tensor, factor, axis), axis)
        if axis == 0:
            quantized = transpose_lazily(quantized, (1, 0))
        int8 = add_initializer(self.graph, quantized, self.namer(f"{name}/int8"))
        return int8, build.constant(scales, f"{name}/scale")


def _sum_columns(int8: ir.Value, scale: ir.Value) -> np.ndarray:
    """[N] of the weight as it is multiplied."""
    weight, scales = read_constant(int8), read_constant(scale)
    assert weight is not None and scales is not None
    sums: np.ndarray = weight.numpy().sum(axis=0, dtype=np.int64) * scales.numpy().astype(np.float64)
    return sums.astype(np.float32)
