"""FoldIntegerBiases: DequantizeLinear of a constant int32 -> the float32 constant that it is, for TensorRT.

    b int32 --DequantizeLinear(scale, 0)--> f32      ->      b * scale

ONNX Runtime's quantiser writes the biases of a Q/DQ model so. TensorRT dequantises types of eight bits and fewer, and
refuses the node; a bias it adds in float32 either way.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.graph import (
    Namer,
    add_initializer,
    is_onnx,
    list_graphs,
    notes_of,
    read_constant,
    remove_dead,
)

_AXIS = 1  # of DequantizeLinear, where it names none


class FoldIntegerBiases(ir.passes.InPlacePass):
    """Fires where int32 values, scale and zero point are constants, the zero point is 0 and no blocks are used."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, fired = Namer(model), 0
        for graph in list_graphs(model):
            for node in list(graph):
                folded = _fold(node) if is_onnx(node, "DequantizeLinear") else None
                if folded is None or node.outputs[0].is_graph_output():
                    continue
                constant = add_initializer(graph, ir.tensor(folded), namer(f"{node.inputs[0].name}/float"))  # type: ignore[union-attr]
                node.outputs[0].replace_all_uses_with(constant)
                remove_dead(graph, [node])
                fired += 1
        if fired:
            notes_of(model).log.append(f"FoldIntegerBiases: {fired} biases became float32")
        return ir.passes.PassResult(model, modified=bool(fired))


def _fold(node: ir.Node) -> np.ndarray | None:
    """What the node gives, or None for one that stays."""
    values, scale = read_constant(node.inputs[0]), read_constant(node.inputs[1])
    if values is None or scale is None or values.dtype != ir.DataType.INT32 or scale.dtype != ir.DataType.FLOAT:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = read_constant(node.inputs[2])
        if zero is None or np.any(zero.numpy()):
            return None
    if "block_size" in node.attributes and node.attributes["block_size"].as_int():
        return None
    factors = scale.numpy()
    if (factors.ndim == 1 and factors.size > 1) or (factors.ndim and len(values.shape) == 1):
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else _AXIS
        shape = [1] * len(values.shape)
        shape[axis if len(shape) > 1 else 0] = -1
        factors = factors.reshape(shape)
    # TensorRT and ONNX Runtime multiply in float32
    return np.asarray(values.numpy().astype(np.float32) * factors, np.float32)
