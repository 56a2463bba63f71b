"""InsertQuantizeDequantize: INT8 as TensorRT wants it, from calibrated ranges.

    x --Q(s_x)--> int8 --DQ(s_x)-->  MatMul / Gemm / Conv  <--DQ(s_w per channel)-- int8 W
    z, r = rows of x by their largest value; z --Q(1/127)--> int8 --DQ--> MatMul / Gemm <-- ... ; * r

Symmetric, zero point 0; activations per tensor, or by rows where that was measured to lose clearly less (`scaling`),
weights per channel; only the inputs of products with a constant
weight: no outputs, no biases, no residual sums, not the attention core (two activations). Scales are float32 here;
ConvertToFloat16, run after this pass, gives them the type of the rest (from opset 19 on).

TensorRT 8.6 cannot read an int8 weight with a lone DQ: `fold_weights=False` stores float weights behind Q and DQ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from exporters.passes.int8.ranges import Range, require_ranges
from exporters.passes.int8.row_scale import add_loud_channels, divide_rows
from exporters.passes.int8.scaling import Scaling, choose_scalings
from exporters.passes.int8.weighted import WeightedNode, find_weighted, quantize_weight, round_scale, scale_rows
from exporters.passes.shared.derived import is_finite
from exporters.passes.shared.graph import Builder, Namer, add_initializer, notes_of, take_over
from exporters.passes.shared.keep_float32 import SMALLEST_NORMAL_FLOAT16
from specs.errors import CalibrationError


class InsertQuantizeDequantize(ir.passes.InPlacePass):
    """Fires in the main graph on weighted nodes with a known range; logs a reason for every other one.

    Args:
        fold_weights: store int8 weights with a DQ; else float weights with Q and DQ.
    """

    def __init__(self, *, fold_weights: bool) -> None:
        self.fold_weights = fold_weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        notes, found = notes_of(model), find_weighted(model.graph)
        ranges = require_ranges(model) if any(not weighted.left_out for weighted in found) else {}
        taken = []
        for weighted in found:
            if reason := weighted.left_out or _check(weighted, ranges):
                notes.log.append(f"InsertQuantizeDequantize: '{weighted.node.name}' is not int8: {reason}")
            else:
                taken.append(weighted)
        scalings = choose_scalings(model, taken, ranges, static=True)
        inserter = _Inserter(model, ranges, scalings, fold_weights=self.fold_weights)
        ways = [scalings[weighted.activation.name or ""].describe() for weighted in taken]  # rewriting renames values
        for weighted, way in zip(taken, ways, strict=True):
            notes.log.append(f"InsertQuantizeDequantize: '{weighted.node.name}' is int8 {way}")
            inserter.rewrite(weighted)
        notes.log.append(f"InsertQuantizeDequantize: {len(taken)} nodes take int8")
        return ir.passes.PassResult(model, modified=bool(taken))


def _check(weighted: WeightedNode, ranges: Mapping[str, Range]) -> str:
    """Why this node cannot be quantised, or ""."""
    if (weighted.activation.name or "") not in ranges:
        return f"its input '{weighted.activation.name}' has no calibrated range"
    if not is_finite(weighted.tensor):
        return "its weight is not finite"
    return ""


class _Inserter:
    """Shares one Q/DQ pair per activation and one int8 tensor per weight."""

    def __init__(
        self, model: ir.Model, ranges: Mapping[str, Range], scalings: Mapping[str, Scaling], *, fold_weights: bool
    ) -> None:
        self.graph, self.ranges, self.scalings, self.fold_weights = model.graph, ranges, scalings, fold_weights
        self.namer, self.opset = Namer(model), model.opset_imports[""]
        self.activations: dict[ir.Value, tuple[ir.Value, ir.Value | None]] = {}  # -> dequantised, scale of its rows
        self.weights: dict[tuple[ir.Value, int | None], ir.Value] = {}

    def rewrite(self, weighted: WeightedNode) -> None:
        node, weight = weighted.node, weighted.weight
        build = Builder(self.graph, node, self.namer)
        activation = node.inputs[0]  # not weighted.activation: the product before it may have been rewritten since
        assert activation is not None
        scaling = self.scalings[activation.name or ""]
        if activation not in self.activations:
            self.activations[activation] = self._dequantize_activation(build, activation, scaling)
        key = (weight, weighted.channel_axis)
        if key not in self.weights:
            self.weights[key] = self._dequantize_weight(build, weighted, scaling)
        rounded, rows = self.activations[activation]
        if rows is None:
            node.replace_input_with(0, rounded)
            node.replace_input_with(1, self.weights[key])
            build.insert_before(node)
        else:
            self._multiply_rows(build, weighted, rounded, self.weights[key], rows, scaling.loud)
        if weight.is_initializer() and not weight.uses() and not weight.is_graph_output():
            assert weight.name is not None
            del self.graph.initializers[weight.name]

    def _dequantize_activation(
        self, build: Builder, activation: ir.Value, scaling: Scaling
    ) -> tuple[ir.Value, ir.Value | None]:
        rows, name = None, activation.name
        if scaling.way == "tensor":
            scale = self._read_scale(activation)
        else:
            scale = round_scale(1 / 127)
            activation, rows = divide_rows(
                build,
                activation,
                factor=scaling.factor,
                lowest=None,  # TensorRT's int8 is symmetric
                opset=self.opset,
                smallest=SMALLEST_NORMAL_FLOAT16,
            )
        step = build.constant(scale, f"{name}/scale")
        zero = build.constant(np.array(0, np.int8), f"{name}/zero_point")
        shape = activation.shape
        quantized = build("QuantizeLinear", activation, step, zero, dtype=ir.DataType.INT8, shape=shape)
        return build("DequantizeLinear", quantized, step, zero, dtype=ir.DataType.FLOAT, shape=shape), rows

    def _multiply_rows(
        self,
        build: Builder,
        weighted: WeightedNode,
        rounded: ir.Value,
        weight: ir.Value,
        rows: ir.Value,
        loud: np.ndarray | None,
    ) -> None:
        """The product of the divided rows, their size and the bias in its place."""
        node = weighted.node
        shape = node.outputs[0].shape
        out = build(node.op_type, rounded, weight, dtype=ir.DataType.FLOAT, shape=shape)
        product = build.nodes[-1]
        product.attributes.update(node.attributes)
        out = build("Mul", out, rows, dtype=ir.DataType.FLOAT, shape=shape)
        if loud is not None:
            assert node.inputs[0] is not None
            out = add_loud_channels(build, out, node.inputs[0], weighted, loud)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            out = build("Add", out, node.inputs[2], dtype=ir.DataType.FLOAT, shape=shape)
        build.insert_before(node)
        name = node.name
        take_over(self.graph, [node], product, out)
        product.name = name

    def _read_scale(self, activation: ir.Value) -> np.ndarray:
        span = self.ranges[activation.name or ""]
        if not (np.isfinite(span.low) and np.isfinite(span.high)) or span.low > span.high:
            raise CalibrationError(
                f"the range of '{activation.name}' is not usable",
                got=f"{span.low} .. {span.high}",
                fix="calibrate again with finite inputs",
            )
        return round_scale(max(abs(span.low), abs(span.high)) / 127)

    def _dequantize_weight(self, build: Builder, weighted: WeightedNode, scaling: Scaling) -> ir.Value:
        axis, name = weighted.channel_axis, weighted.weight.name
        tensor = scale_rows(weighted.tensor, scaling.weights, axis)
        quantized, scales = quantize_weight(tensor, axis)
        attributes = {} if axis is None else {"axis": axis}
        scale = build.constant(scales, f"{name}/scale")
        zero = build.constant(np.zeros(scales.shape, np.int8), f"{name}/zero_point")
        shape = ir.Shape(quantized.shape.numpy())
        if self.fold_weights:
            int8 = self._store(quantized, f"{name}/int8")
        else:
            int8 = build(
                "QuantizeLinear",
                weighted.weight if tensor is weighted.tensor else self._store(tensor, f"{name}/scaled"),
                scale,
                zero,
                dtype=ir.DataType.INT8,
                shape=shape,
                attributes=attributes,
            )
        return build("DequantizeLinear", int8, scale, zero, dtype=ir.DataType.FLOAT, shape=shape, attributes=attributes)

    def _store(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        return add_initializer(self.graph, tensor, self.namer(name))
