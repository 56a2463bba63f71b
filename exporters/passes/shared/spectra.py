"""Spectrograms: what a graph computes of its inputs by linear operators and squares, up to a logarithm.

    samples -> Pad -> Conv with cosines and sines -> re^2 + im^2 -> mel filters -> Clip -> Log

A logarithm turns relative errors into absolute ones: a quiet band, 80 dB below the loudest, has nothing left of what a
rounding of the samples or of the transform leaves beside the loud one. So the whole chain stays float32. It is found
from the Log backwards: everything that it is made of, as far as the graph's inputs, must be in _CHAIN; a network's own
logarithm (a log softmax, a softplus) has an activation or a Softmax among its ancestors, and is no spectrogram.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.graph import is_onnx, read_constant

_CHAIN = frozenset(
    "Abs Add Cast Clip Concat Conv Div Gather Identity MatMul Gemm Max Mul Pad Pow Reshape Slice Split Sqrt Squeeze Sub"
    " Transpose Unsqueeze".split()
)
_PRODUCTS = ("Conv", "MatMul", "Gemm")


def find_spectra(graph: ir.Graph) -> set[ir.Node]:
    """Every node of every chain from an input to a Log that has a product with a constant and a square in it."""
    found: set[ir.Node] = set()
    for node in graph:
        if is_onnx(node, "Log"):
            found |= _collect(node)
    return found


def _collect(log: ir.Node) -> set[ir.Node]:
    """The nodes that `log` is made of, or none of them when it is no spectrogram."""
    chain: set[ir.Node] = set()
    todo = [log]
    while todo:
        node = todo.pop()
        for value in node.inputs:
            producer = value.producer() if value is not None and read_constant(value) is None else None
            if producer is None or producer in chain:
                continue
            if _is_shape(producer):
                continue
            if not is_onnx(producer, *_CHAIN):
                return set()
            chain.add(producer)
            todo.append(producer)
    if not any(is_onnx(node, *_PRODUCTS) for node in chain) or not any(map(_is_square, chain)):
        return set()
    return chain


def _is_shape(node: ir.Node) -> bool:
    """Integers: sizes and indices, whatever they are made of."""
    return all(value.dtype is not None and not value.dtype.is_floating_point() for value in node.outputs)


def _is_square(node: ir.Node) -> bool:
    return is_onnx(node, "Pow", "Abs") or (is_onnx(node, "Mul") and node.inputs[0] is node.inputs[1])
