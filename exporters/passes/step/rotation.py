"""Rotary embedding in halves as graphs spell it (Su et al. 2021, in the order of Llama's rotate_half).

    a, b = Split(x, axis 3)     out = Concat(Sub(Mul(a, cos), Mul(b, sin)), Add(Mul(b, cos), Mul(a, sin)))

x is [B, H, 1, D] (or [B, 1, H, D], the same in memory), a and b are its halves, cos and sin [B, 1, 1, D/2]. Products
and the sum may have their operands in either order.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from exporters.passes.step.nodes import find_producer, is_kept, list_dims


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """`x` before it is rotated, and the tables."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


def match_rotation(value: ir.Value, batch: int | str) -> Rotation | None:
    """The rotation whose result `value` is; None for anything else, and for what the model keeps in float32."""
    concat = find_producer(value, "Concat")
    if concat is None or len(concat.inputs) != 2 or not _is_last(concat, len(value.shape or ())):
        return None
    sub, add = find_producer(concat.inputs[0], "Sub"), find_producer(concat.inputs[1], "Add")
    if sub is None or add is None or is_kept(concat, sub, add):
        return None
    first, second = (_match_product(term) for term in sub.inputs)
    if first is None or second is None or first.half != 0 or second.half != 1 or first.split is not second.split:
        return None
    terms = [_match_product(term) for term in add.inputs]
    wanted = [_Product(first.split, 1, first.table), _Product(first.split, 0, second.table)]
    if terms not in (wanted, wanted[::-1]):
        return None
    x, cos, sin = first.split.inputs[0], first.table, second.table
    size = (list_dims(value) or (None,))[-1]
    tables = (batch, 1, 1, size // 2) if isinstance(size, int) else None
    if x is None or list_dims(cos) != tables or list_dims(sin) != tables:
        return None
    return Rotation(x=x, cos=cos, sin=sin)


@dataclass(frozen=True)
class _Product:
    """One half of what `split` divides, times a table."""

    split: ir.Node
    half: int
    table: ir.Value


def _match_product(value: ir.Value | None) -> _Product | None:
    node = find_producer(value, "Mul")
    if node is None or is_kept(node):
        return None
    left, right = node.inputs
    for part, table in ((left, right), (right, left)):
        split = find_producer(part, "Split")
        if split is not None and part is not None and table is not None and _divides_in_half(split):
            return _Product(split, part.index() or 0, table)
    return None


def _divides_in_half(split: ir.Node) -> bool:
    whole, halves = list_dims(split.inputs[0]), [list_dims(value) for value in split.outputs]
    if whole is None or len(halves) != 2 or is_kept(split) or not _is_last(split, len(whole)):
        return False
    return all(half is not None and isinstance(half[-1], int) and 2 * half[-1] == whole[-1] for half in halves)


def _is_last(node: ir.Node, rank: int) -> bool:
    """Whether the node works along the last axis of four."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return rank == 4 and axis in (-1, 3)
