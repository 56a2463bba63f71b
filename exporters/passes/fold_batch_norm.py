"""FoldBatchNorm: BatchNormalization(Conv(x, W, b)) -> Conv(x, s W, s (b - mean) + bias), s = scale / sqrt(var + eps).

Two linear steps in one, computed in float64 and rounded once, when the weight is written. A quantiser that comes after
it sees the weight that is multiplied, and its scales are those of the result; a batch norm of its own would stand
between two products and cost a pass over the feature map.

    Conv            W [N, C / groups, ...]    s along axis 0
    ConvTranspose   W [C, N, ...]             s along axis 1, one group only

A weight that is stored in float16 or bfloat16 stands behind a Cast in the portable graph, which therefore keeps its
batch norms: folded, it would have to be stored once more in float32. A typed graph has a copy of its own anyway.
"""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.derived import derive
from exporters.passes.shared.graph import (
    Namer,
    add_initializer,
    describe_node,
    is_onnx,
    list_graphs,
    notes_of,
    read_constant,
    replace_output,
)

_EPSILON = 1e-5  # of ONNX, where a node says none


class FoldBatchNorm(ir.passes.InPlacePass):
    """Fires on a BatchNormalization for inference behind a convolution that nothing else reads, all of it constant."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, log = Namer(model), notes_of(model).log
        fired = 0
        for graph in list_graphs(model):
            for node in list(graph):
                if not is_onnx(node, "BatchNormalization"):
                    continue
                if reason := _check(node):
                    log.append(f"FoldBatchNorm: {describe_node(node)} stays: {reason}")
                    continue
                _rewrite(graph, node, namer)
                fired += 1
        if fired:
            log.append(f"FoldBatchNorm: {fired} nodes went into the convolution before them")
        return ir.passes.PassResult(model, modified=bool(fired))


def _check(node: ir.Node) -> str:
    """Why this node stays, or ""."""
    if len(node.outputs) > 1 or ("training_mode" in node.attributes and node.attributes["training_mode"].as_int()):
        return "it is in training mode"
    if any(read_constant(value) is None for value in node.inputs[1:]):
        return "its statistics are not constant"
    value = node.inputs[0]
    conv = value.producer() if value is not None else None
    if value is None or conv is None or not is_onnx(conv, "Conv", "ConvTranspose"):
        return "there is no convolution before it"
    if len(list(value.uses())) != 1 or value.is_graph_output():
        return "something else reads the convolution"
    weight = read_constant(conv.inputs[1])
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if weight is None or weight.dtype != ir.DataType.FLOAT or (bias is not None and read_constant(bias) is None):
        return "the convolution's weights are not constant float32"
    if conv.op_type == "ConvTranspose" and "group" in conv.attributes and conv.attributes["group"].as_int() != 1:
        return "the transposed convolution has groups"
    return ""


def _rewrite(graph: ir.Graph, node: ir.Node, namer: Namer) -> None:
    assert node.inputs[0] is not None
    conv = node.inputs[0].producer()
    assert conv is not None
    scale, shift, mean, variance = (_read(value) for value in node.inputs[1:5])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else _EPSILON
    factor = scale / np.sqrt(variance + epsilon)
    old_bias = _read(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.zeros_like(mean)
    bias = ((old_bias - mean) * factor + shift).astype(np.float32)
    weight = conv.inputs[1]
    tensor = read_constant(weight)
    assert weight is not None and tensor is not None
    folded = _scale_lazily(tensor, factor, axis=0 if conv.op_type == "Conv" else 1)
    name = f"{weight.name}/normalised"
    inputs = [
        conv.inputs[0],
        add_initializer(graph, folded, namer(name)),
        add_initializer(graph, ir.tensor(bias), namer(f"{name}/bias")),
    ]
    origin = dict(conv.metadata_props)
    merged = ir.node(conv.op_type, inputs, attributes=dict(conv.attributes), metadata_props=origin)
    merged.name, merged.version = conv.name, conv.version
    merged.outputs[0].type, merged.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, merged)
    replace_output(graph, node.outputs[0], merged.outputs[0])
    stored = [value for value in (*node.inputs[1:], *conv.inputs[1:]) if value is not None]
    graph.remove(node, safe=True)
    graph.remove(conv, safe=True)
    for value in stored:
        _drop_unused(value)


def _read(value: ir.Value | None) -> np.ndarray:
    tensor = read_constant(value)
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


def _scale_lazily(tensor: ir.TensorProtocol, factor: np.ndarray, *, axis: int) -> ir.LazyTensor:
    """Each channel of `axis` times its factor, in float64."""
    along = factor.reshape([-1 if i == axis else 1 for i in range(len(tensor.shape))])
    step = ("scaled", axis, hashlib.sha256(factor.tobytes()).hexdigest())
    return derive(
        tensor, step, lambda array: (array.astype(np.float64) * along).astype(np.float32),
        dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()),
    )  # fmt: skip


def _drop_unused(value: ir.Value) -> None:
    graph = value.graph
    if graph is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        assert value.name is not None
        graph.initializers.pop(value.name, None)
