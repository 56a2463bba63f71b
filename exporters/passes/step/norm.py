"""RMSNorm as graphs spell it (Zhang & Sennrich 2019): x / sqrt(mean(x^2) + epsilon) * weight, over the last axis.

    Pow(x, 2) or Mul(x, x) - ReduceMean - Add(epsilon) - Sqrt - Reciprocal - Mul(x, .) - Mul(., weight)

Div in place of Reciprocal and Mul; both operands of a sum or a product in either order.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from exporters.passes.shared.graph import read_constant
from exporters.passes.step.nodes import find_producer, is_kept, is_weight


@dataclass(frozen=True, kw_only=True)
class Norm:
    """x [..., K], weight [K]."""

    x: ir.Value
    weight: ir.Value
    epsilon: float


def match_norm(value: ir.Value) -> Norm | None:
    """The norm whose result `value` is; None for anything else, and for what the model keeps in float32."""
    outer = find_producer(value, "Mul")
    if outer is None or is_kept(outer):
        return None
    for scaled, weight in _list_orders(outer):
        size = value.shape[-1] if value.shape is not None else None
        if weight is None or not is_weight(weight, 1) or weight.shape is None or weight.shape[0] != size:
            continue
        found = _match_scaled(scaled)
        if found is not None:
            x, epsilon = found
            return Norm(x=x, weight=weight, epsilon=epsilon)
    return None


def _match_scaled(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """x / sqrt(mean(x^2) + epsilon): x and epsilon."""
    node = find_producer(value, "Mul", "Div")
    if node is None or is_kept(node):
        return None
    for x, factor in _list_orders(node) if node.op_type == "Mul" else [(node.inputs[0], node.inputs[1])]:
        root = factor if node.op_type == "Div" else _match_inverse(factor)
        epsilon = _match_root(root, x)
        if epsilon is not None and x is not None and not is_kept(x.producer()):
            return x, epsilon
    return None


def _match_inverse(value: ir.Value | None) -> ir.Value | None:
    """r of 1 / r."""
    node = find_producer(value, "Reciprocal", "Div")
    if node is None or is_kept(node):
        return None
    if node.op_type == "Reciprocal":
        return node.inputs[0]
    return node.inputs[1] if _read_number(node.inputs[0]) == 1.0 else None


def _match_root(value: ir.Value | None, x: ir.Value | None) -> float | None:
    """Epsilon of sqrt(mean(x^2) + epsilon)."""
    root = find_producer(value, "Sqrt")
    total = find_producer(root.inputs[0], "Add") if root is not None else None
    if total is None or is_kept(root, total):
        return None
    for mean, constant in _list_orders(total):
        epsilon = _read_number(constant)
        if epsilon is not None and _is_mean_square(mean, x):
            return epsilon
    return None


def _is_mean_square(value: ir.Value | None, x: ir.Value | None) -> bool:
    mean = find_producer(value, "ReduceMean")
    if mean is None or x is None or x.shape is None or not _reduces_last_axis(mean, len(x.shape)):
        return False
    square = find_producer(mean.inputs[0], "Pow", "Mul")
    if square is None or is_kept(mean, square) or square.inputs[0] is not x:
        return False
    return square.inputs[1] is x if square.op_type == "Mul" else _read_number(square.inputs[1]) == 2.0


def _reduces_last_axis(node: ir.Node, rank: int) -> bool:
    if "keepdims" in node.attributes and node.attributes["keepdims"].as_int() != 1:
        return False
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        tensor = read_constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if tensor is None else tensor.numpy().reshape(-1).tolist()
    return axes in ([-1], [rank - 1])


def _list_orders(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    left, right = node.inputs
    return [(left, right), (right, left)]


def _read_number(value: ir.Value | None) -> float | None:
    tensor = read_constant(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None
