"""InsertDynamicQuantization: INT8 for ONNX Runtime on CPUs, without calibration data.

    MatMul(x, W) [+ bias]  ->  com.microsoft::DynamicQuantizeMatMul(x, int8 W, scales, , bias)

The activation's range is taken from the activation itself at run time, per tensor, asymmetric uint8; weights are int8
per column. Measured on ViT-B against calibrated Q/DQ (ONNX Runtime 1.31, AVX-512 VNNI, CPU time of one thread): dynamic
70 ms, Q/DQ 77 ms, float32 194 ms; and it needs no data. Convolutions stay float32: there is no fused dynamic kernel for
them, and the unfused ConvInteger was not measured.

A batch shares one range, so a row's result depends a little on its neighbours. On CPUs without VNNI or AMX the int8
product of AVX2 can saturate; the graph is the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes._derived import is_finite, transpose_lazily
from exporters.passes._graph import Builder, Namer, add_initializer, is_onnx, notes_of, read_constant, take_over
from exporters.passes._weighted import WeightedNode, find_weighted, quantize_weight

_DOMAIN = "com.microsoft"


class InsertDynamicQuantization(ir.passes.InPlacePass):
    """Fires in the main graph on MatMul with a constant 2-D weight; logs a reason for every other weighted node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        weights: Weights = {}
        count = 0
        for weighted in find_weighted(model.graph):
            if reason := weighted.left_out or _check(weighted):
                notes.log.append(f"InsertDynamicQuantization: '{weighted.node.name}' is not int8: {reason}")
                continue
            _rewrite(Builder(model.graph, weighted.node, namer), weighted, weights)
            count += 1
        if count:
            model.opset_imports[_DOMAIN] = 1
        notes.log.append(f"InsertDynamicQuantization: {count} nodes take int8")
        return ir.passes.PassResult(model, modified=bool(count))


def _check(weighted: WeightedNode) -> str:
    node = weighted.node
    if node.op_type not in ("MatMul", "Gemm"):
        return f"ONNX Runtime has no fused dynamic int8 kernel for {node.op_type}"
    if node.op_type == "Gemm" and any(
        name in node.attributes and node.attributes[name].as_float() != 1 for name in ("alpha", "beta")
    ):
        return "its alpha and beta are not 1"
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None and not _is_vector(bias, weighted.tensor.shape.numpy()[weighted.channel_axis or 0]):
        return "its bias is not a constant vector"
    if weighted.activation.dtype != ir.DataType.FLOAT or weighted.activation.shape is None:
        return "the type and rank of its input are not known"
    if len(weighted.activation.shape) < 2:
        return "its input is a vector"
    if not is_finite(weighted.tensor):
        return "its weight is not finite"
    return ""


Weights = dict[tuple[ir.Value, int | None], tuple[ir.Value, ir.Value, ir.Value]]


def _rewrite(build: Builder, weighted: WeightedNode, weights: Weights) -> None:
    node, weight = weighted.node, weighted.weight
    key = (weight, weighted.channel_axis)
    if key not in weights:
        weights[key] = _store_weight(build, weighted)
    target, bias = _find_bias(weighted)
    # not weighted.activation: the product before it may have been rewritten since
    operands = [node.inputs[0], *weights[key], *([bias] if bias is not None else [])]
    out = build(
        "DynamicQuantizeMatMul",
        *operands,
        domain=_DOMAIN,
        dtype=ir.DataType.FLOAT,
        shape=target.outputs[0].shape,
    )
    build.insert_before(target)
    take_over(build.graph, [target, node], node, out)
    if weight.is_initializer() and not weight.uses() and not weight.is_graph_output():
        assert weight.name is not None
        del build.graph.initializers[weight.name]


def _store_weight(build: Builder, weighted: WeightedNode) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The int8 weight as [K, N], its scale and zero point per column."""
    name, axis = weighted.weight.name, weighted.channel_axis
    quantized, scales = quantize_weight(weighted.tensor, axis)
    if axis == 0:
        quantized = transpose_lazily(quantized, (1, 0))
    return (
        add_initializer(build.graph, quantized, build.namer(f"{name}/int8")),
        build.constant(scales, f"{name}/scale"),
        build.constant(np.zeros(scales.shape, np.int8), f"{name}/zero_point"),
    )


def _find_bias(weighted: WeightedNode) -> tuple[ir.Node, ir.Value | None]:
    """The node whose output the new one replaces, and the constant bias [N] that it takes in."""
    node = weighted.node
    columns = weighted.tensor.shape.numpy()[weighted.channel_axis or 0]
    if node.op_type == "Gemm":
        return node, node.inputs[2] if len(node.inputs) > 2 else None
    product = node.outputs[0]
    users = list(product.uses())
    if product.is_graph_output() or len(users) != 1 or not is_onnx(users[0].node, "Add"):
        return node, None
    addition = users[0].node
    other = next((value for value in addition.inputs if value is not product), None)
    return (addition, other) if _is_vector(other, columns) else (node, None)


def _is_vector(value: ir.Value | None, size: int) -> bool:
    tensor = read_constant(value)
    return tensor is not None and list(tensor.shape.numpy()) == [size]
