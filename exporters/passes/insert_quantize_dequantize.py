"""InsertQuantizeDequantize: INT8 as TensorRT wants it, from calibrated ranges.

    x --Q(s_x)--> int8 --DQ(s_x)-->  MatMul / Gemm / Conv  <--DQ(s_w per channel)-- int8 W

Symmetric, zero point 0; activations per tensor, weights per channel; only the inputs of products with a constant
weight: no outputs, no biases, no residual sums, not the attention core (two activations). Scales are float32 here;
ConvertToFloat16, run after this pass, gives them the type of the rest (from opset 19 on).

TensorRT 8.6 cannot read an int8 weight with a lone DQ: `fold_weights=False` stores float weights behind Q and DQ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from exporters.passes._derived import is_finite
from exporters.passes._graph import Builder, Namer, add_initializer, notes_of
from exporters.passes._ranges import Range, ranges_of
from exporters.passes._weighted import WeightedNode, find_weighted, quantize_weight, round_scale
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
        ranges = ranges_of(model) if any(not weighted.left_out for weighted in found) else {}
        inserter = _Inserter(model, ranges, fold_weights=self.fold_weights)
        count = 0
        for weighted in found:
            name = weighted.node.name or ""
            if reason := weighted.left_out or inserter.check(weighted):
                notes.log.append(f"InsertQuantizeDequantize: '{name}' is not int8: {reason}")
                continue
            inserter.rewrite(weighted)
            count += 1
        notes.log.append(f"InsertQuantizeDequantize: {count} nodes take int8")
        return ir.passes.PassResult(model, modified=bool(count))


class _Inserter:
    """Shares one Q/DQ pair per activation and one int8 tensor per weight."""

    def __init__(self, model: ir.Model, ranges: Mapping[str, Range], *, fold_weights: bool) -> None:
        self.graph, self.ranges, self.fold_weights = model.graph, ranges, fold_weights
        self.namer = Namer(model)
        self.activations: dict[ir.Value, ir.Value] = {}
        self.weights: dict[tuple[ir.Value, int | None], ir.Value] = {}

    def check(self, weighted: WeightedNode) -> str:
        """Why this node cannot be quantised, or ""."""
        if (weighted.activation.name or "") not in self.ranges:
            return f"its input '{weighted.activation.name}' has no calibrated range"
        if not is_finite(weighted.tensor):
            return "its weight is not finite"
        return ""

    def rewrite(self, weighted: WeightedNode) -> None:
        node, activation = weighted.node, weighted.activation
        build = Builder(self.graph, node, self.namer)
        if activation not in self.activations:
            scale = build.constant(self._read_scale(activation), f"{activation.name}/scale")
            zero = build.constant(np.array(0, np.int8), f"{activation.name}/zero_point")
            quantized = build("QuantizeLinear", activation, scale, zero, dtype=ir.DataType.INT8, shape=activation.shape)
            self.activations[activation] = build(
                "DequantizeLinear", quantized, scale, zero, dtype=ir.DataType.FLOAT, shape=activation.shape
            )
        key = (weighted.weight, weighted.channel_axis)
        if key not in self.weights:
            self.weights[key] = self._dequantize_weight(build, weighted)
        build.insert_before(node)
        node.replace_input_with(0, self.activations[activation])
        node.replace_input_with(1, self.weights[key])
        weight = weighted.weight
        if weight.is_initializer() and not weight.uses() and not weight.is_graph_output():
            assert weight.name is not None
            del self.graph.initializers[weight.name]

    def _read_scale(self, activation: ir.Value) -> np.ndarray:
        span = self.ranges[activation.name or ""]
        if not (np.isfinite(span.low) and np.isfinite(span.high)) or span.low > span.high:
            raise CalibrationError(
                f"the range of '{activation.name}' is not usable",
                got=f"{span.low} .. {span.high}",
                fix="calibrate again with finite inputs",
            )
        return round_scale(max(abs(span.low), abs(span.high)) / 127)

    def _dequantize_weight(self, build: Builder, weighted: WeightedNode) -> ir.Value:
        axis, name = weighted.channel_axis, weighted.weight.name
        quantized, scales = quantize_weight(weighted.tensor, axis)
        attributes = {} if axis is None else {"axis": axis}
        scale = build.constant(scales, f"{name}/scale")
        zero = build.constant(np.zeros(scales.shape, np.int8), f"{name}/zero_point")
        shape = ir.Shape(quantized.shape.numpy())
        if self.fold_weights:
            int8 = add_initializer(build.graph, quantized, self.namer(f"{name}/int8"))
        else:
            int8 = build(
                "QuantizeLinear",
                weighted.weight,
                scale,
                zero,
                dtype=ir.DataType.INT8,
                shape=shape,
                attributes=attributes,
            )
        return build("DequantizeLinear", int8, scale, zero, dtype=ir.DataType.FLOAT, shape=shape, attributes=attributes)
