"""Multiply-accumulates of one ONNX node, from the shapes of its tensors; () stands for an unknown shape.

Only products count: they are nearly all of the time of the models we ship, and what precision is chosen for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engines.onnx_files.records import Node

ShapeOf = Callable[[str], tuple[int, ...]]


def _volume(shape: tuple[int, ...]) -> float:
    volume = 1.0
    for size in shape:
        volume *= size
    return volume


def _count_matmul(node: Node, shape_of: ShapeOf) -> float:
    """prod(M N) * K; from A and B when the result's shape is unknown."""
    a, b, out = shape_of(node.inputs[0]), shape_of(node.inputs[1]), shape_of(node.outputs[0])
    if not a or not b:
        return _volume(a) * _volume(b)
    return _volume(out) * a[-1] if out else _volume(a) * b[-1]


def _count_gemm(node: Node, shape_of: ShapeOf) -> float:
    a, b = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    if len(b) != 2:
        return _volume(a)
    return _volume(a) * (b[0] if node.attributes.get("transB") else b[1])


def _count_packed_matmul(node: Node, shape_of: ShapeOf) -> float:
    """MatMulNBits: B is packed, and its width is an attribute."""
    width = node.attributes.get("N", 1)
    return _volume(shape_of(node.inputs[0])) * (width if isinstance(width, int) else 1)


def _count_conv(node: Node, shape_of: ShapeOf) -> float:
    """prod(result) * prod(one filter): W is [out, in / groups, *kernel]."""
    return _volume(shape_of(node.outputs[0])) * _volume(shape_of(node.inputs[1])[1:])


def _count_qlinear_conv(node: Node, shape_of: ShapeOf) -> float:
    return _volume(shape_of(node.outputs[0])) * _volume(shape_of(node.inputs[3])[1:] if len(node.inputs) > 3 else ())


def _count_qlinear_matmul(node: Node, shape_of: ShapeOf) -> float:
    return _volume(shape_of(node.outputs[0])) * (shape_of(node.inputs[0]) or (1,))[-1]


def _count_conv_transpose(node: Node, shape_of: ShapeOf) -> float:
    """prod(input) * prod(one filter): W is [in, out / groups, *kernel]."""
    return _volume(shape_of(node.inputs[0])) * _volume(shape_of(node.inputs[1])[1:])


def _count_attention(node: Node, shape_of: ShapeOf) -> float:
    """Scores and sum: 2 * prod(Q) * S, with S the second last size of K [B, K, S, D] (or [B, S, C])."""
    query, key = shape_of(node.inputs[0]), shape_of(node.inputs[1]) if len(node.inputs) > 1 else ()
    return 2 * _volume(query) * (key[-2] if len(key) > 1 else 1)


def _count_recurrent(node: Node, shape_of: ShapeOf) -> float:
    """T * B * (one product of W and one of R a step): X [T, B, I], W and R [directions, gates * H, I or H]."""
    steps = _volume(shape_of(node.inputs[0])[:2])
    return steps * sum(_volume(shape_of(name)) for name in node.inputs[1:3])


def _count_step_linear(node: Node, shape_of: ShapeOf) -> float:
    """x [..., K] with every matrix [K, N], or [N, K] transposed: a plugin's node (docs/engines.md)."""
    weights = node.attributes.get("weights", 1)
    axis = 0 if node.attributes.get("transposed") else -1
    matrices = node.inputs[1 : 1 + (weights if isinstance(weights, int) else 1)]
    return _volume(shape_of(node.inputs[0])) * sum(shape_of(name)[axis] for name in matrices if shape_of(name))


def _count_step_attention(node: Node, shape_of: ShapeOf) -> float:
    """Scores and sum of one token a row: 2 * B * H * S * D, from past_k [B, K, S, D] and the queries a head has."""
    groups = node.attributes.get("groups", 1)
    return 2 * _volume(shape_of(node.inputs[3])) * (groups if isinstance(groups, int) else 1)


#: op_type -> counter.
MACS: Mapping[str, Callable[[Node, ShapeOf], float]] = {
    "MatMul": _count_matmul,
    "FusedMatMul": _count_matmul,
    "MatMulInteger": _count_matmul,
    "MatMulIntegerToFloat": _count_matmul,
    "DynamicQuantizeMatMul": _count_matmul,
    "QLinearMatMul": _count_qlinear_matmul,
    "MatMulNBits": _count_packed_matmul,
    "Gemm": _count_gemm,
    "FusedGemm": _count_gemm,
    "QGemm": _count_gemm,
    "Conv": _count_conv,
    "FusedConv": _count_conv,
    "ConvInteger": _count_conv,
    "QLinearConv": _count_qlinear_conv,
    "ConvTranspose": _count_conv_transpose,
    "RNN": _count_recurrent,
    "GRU": _count_recurrent,
    "LSTM": _count_recurrent,
    "Attention": _count_attention,
    "MultiHeadAttention": _count_attention,
    "GroupQueryAttention": _count_attention,
    "MetagenStepLinear": _count_step_linear,
    "MetagenStepAttention": _count_step_attention,
}
