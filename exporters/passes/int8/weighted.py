"""The nodes that INT8 is for: products with a constant weight, and which of them are left out.

    MatMul(x, W [K, N])     per column      Gemm(x, W [K, N] or transB [N, K])     per output
    Conv(x, W [N, ...])     per output      ConvTranspose(x, W [K, N / groups, ...])  per output, one group only

By convention, not by measurement here, two layers are left out while they are small: the first convolution (it reads
the raw image) and the last layer before an output (its rounding is the output's). Others are left out because the
family says so (`specs.families.GraphSpec.unquantised`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.derived import derive, find_stored, read_stored
from exporters.passes.shared.graph import is_onnx, read_constant
from exporters.passes.shared.spectra import find_spectra

#: Metadata of a node that its family keeps out of int8: the reason.
UNQUANTISED_KEY = "metagen.unquantised"

#: An output layer above this share of all weights is worth quantising: a language model's head is a third of it.
_SMALL_SHARE = 0.1
_ELEMENTS_AT_ONCE = 4 << 20
#: Normalisation by constants or by the input's own statistics, and padding.
_NORMALISES = (
    *("Add", "Sub", "Mul", "Div", "Cast", "Identity", "BatchNormalization", "Clip", "Transpose", "Pad", "Unsqueeze"),
    *("ReduceMean", "ReduceSum", "Pow", "Sqrt", "Where", "Less", "Range", "Shape", "Squeeze", "Expand"),
)
_PASSES_ON = ("Add", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Softmax", "Cast")


@dataclass(frozen=True)
class WeightedNode:
    """One candidate; `channel_axis` is the axis of the weight that has one scale an element, None for one scale."""

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    tensor: ir.TensorProtocol
    channel_axis: int | None
    left_out: str = ""  # why it stays in high precision


def find_weighted(graph: ir.Graph) -> list[WeightedNode]:
    """Every candidate of one graph, with the reason beside those that are left out."""
    found = [weighted for node in graph if (weighted := _read_node(node)) is not None]
    total_bytes = sum(weighted.tensor.nbytes for weighted in found)
    spectra = find_spectra(graph)
    named = []
    for weighted in found:
        reason = weighted.node.metadata_props.get(UNQUANTISED_KEY) or _find_exclusion(graph, weighted, total_bytes)
        if weighted.node in spectra:
            reason = "it makes a spectrum, and the logarithm behind it shows every rounding"
        named.append(
            WeightedNode(
                weighted.node, weighted.activation, weighted.weight, weighted.tensor, weighted.channel_axis, reason
            )
        )
    return named


def _read_node(node: ir.Node) -> WeightedNode | None:
    if not is_onnx(node, "MatMul", "Gemm", "Conv", "ConvTranspose"):
        return None
    activation, weight = node.inputs[:2]
    tensor = read_constant(weight)
    if activation is None or weight is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    rank = len(tensor.shape)
    if read_constant(activation) is not None or tensor.size == 0 or rank < 2:
        return None
    if node.op_type == "MatMul":
        axis: int | None = 1
        if rank != 2:
            return None
    elif node.op_type == "Gemm":
        if _read_int(node, "transA"):
            return None
        axis = 0 if _read_int(node, "transB") else 1
    elif node.op_type == "Conv":
        axis = 0
    else:
        axis = 1 if _read_int(node, "group", 1) == 1 else None
    return WeightedNode(node, activation, weight, tensor, axis)


def _read_int(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _find_exclusion(graph: ir.Graph, weighted: WeightedNode, total_bytes: int) -> str:
    if weighted.tensor.nbytes > _SMALL_SHARE * total_bytes and total_bytes != weighted.tensor.nbytes:
        return ""
    if "Conv" in weighted.node.op_type and _reads_input(graph, weighted.activation):
        return "the first convolution reads the raw input and is a small share of the work"
    if total_bytes != weighted.tensor.nbytes and _reaches_output(weighted.node):
        return "the last layer's rounding is the output's, and it is a small share of the work"
    return ""


def _reads_input(graph: ir.Graph, value: ir.Value | None) -> bool:
    """Whether only normalisation lies between this value and the graph's inputs."""
    inputs, seen, todo = set(graph.inputs), set(), [value]
    while todo:
        value = todo.pop()
        if value is None or value in inputs or value in seen or read_constant(value) is not None:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None or not is_onnx(producer, *_NORMALISES):
            return False
        todo.extend(producer.inputs)
    return True


def _reaches_output(node: ir.Node) -> bool:
    value = node.outputs[0]
    while not value.is_graph_output():
        users = list(value.uses())
        if len(users) != 1 or not is_onnx(users[0].node, *_PASSES_ON):
            return False
        constant = [v is value or read_constant(v) is not None for v in users[0].node.inputs]
        if not all(constant):
            return False
        value = users[0].node.outputs[0]
    return True


def quantize_weight(tensor: ir.TensorProtocol, axis: int | None) -> tuple[ir.LazyTensor, np.ndarray]:
    """Symmetric int8 in -127 .. 127, computed when it is written, and its scale(s): |w - q s| <= s / 2.

    Scales are exact in float16, so that a float16 graph dequantises with the very scale that quantised.
    """
    scale = _measure_scale(read_stored(tensor), axis)

    def quantize(array: np.ndarray) -> np.ndarray:
        quantized = np.empty(array.shape, np.int8)
        for rows in _split_rows(array):
            divisor = scale[rows] if axis == 0 else scale
            exact = array[rows].astype(np.float32, copy=False)
            quantized[rows] = np.clip(np.rint(exact / divisor), -127, 127)
        return quantized

    stored = find_stored(tensor)
    shape = ir.Shape(tensor.shape.numpy())
    int8 = derive(stored or tensor, ("int8", axis), quantize, dtype=ir.DataType.INT8, shape=shape)
    return int8, scale.reshape(-1) if axis is not None else scale.reshape(())


def scale_rows(tensor: ir.TensorProtocol, factor: np.ndarray | None, axis: int | None) -> ir.TensorProtocol:
    """The weight with each of its rows times `factor` [K], computed when it is read; `axis` is that of its columns."""
    if factor is None:
        return tensor
    assert axis is not None
    shaped = factor[:, None] if axis == 1 else factor
    return derive(
        tensor, ("scaled", axis, factor.tobytes()), lambda array: (array * shaped).astype(np.float32),
        dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()),
    )  # fmt: skip


def _measure_scale(array: np.ndarray, axis: int | None) -> np.ndarray:
    """[1, ..., N, ..., 1], or one value without an axis; a few rows of the weight in float32 at a time."""
    others = tuple(i for i in range(array.ndim) if i != axis) if axis is not None else None
    parts = [
        np.abs(array[rows].astype(np.float32, copy=False)).max(axis=others, keepdims=axis is not None)
        for rows in _split_rows(array)
    ]
    if axis == 0:
        largest = np.concatenate(parts)
    else:
        largest = np.maximum.reduce([np.asarray(part) for part in parts])
    return round_scale(largest / np.float32(127))


def _split_rows(array: np.ndarray) -> Iterator[slice]:
    step = max(1, _ELEMENTS_AT_ONCE * len(array) // array.size)
    for start in range(0, len(array), step):
        yield slice(start, start + step)


def round_scale(scale: np.ndarray | float) -> np.ndarray:
    """The float16 at or above each scale, as float32; a channel of zeros gets 1."""
    exact = np.asarray(scale, np.float32)
    rounded = np.clip(exact, 2.0**-20, 65504.0).astype(np.float16)
    rounded = np.where(rounded.astype(np.float32) < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return np.where(exact > 0, rounded.astype(np.float32), np.float32(1))


def list_activations(found: list[WeightedNode]) -> Iterator[str]:
    """The names of the tensors whose range must be known."""
    for weighted in found:
        if not weighted.left_out and weighted.activation.name:
            yield weighted.activation.name
