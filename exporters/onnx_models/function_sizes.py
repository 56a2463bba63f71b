"""How many nodes a model has once its local functions are inlined, counted without inlining them.

    nodes(f) = sum over the nodes of f's body: 1, or nodes(g) where the node calls a function g

Functions that call one another twice, thirty deep, are a file of a kilobyte and 2^30 nodes; one that calls itself has
no end. Every runtime inlines functions, so both are refused before one is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from exporters.onnx_models.normalize import walk_nodes
from specs.errors import GraphError

_MOST_NODES = 2_000_000

Key = tuple[str, str]


def require_finite_functions(path: Path, proto: onnx.ModelProto) -> None:
    """Raises GraphError for functions that call themselves, or that would become more than two million nodes."""
    bodies: dict[Key, onnx.FunctionProto] = {(one.domain, one.name): one for one in proto.functions}
    counts: dict[Key, int] = {}
    for key in bodies:
        _count(path, key, bodies, counts)
    total = _sum_nodes(proto.graph.node, counts)
    if total > _MOST_NODES:
        raise GraphError(
            "the model's functions become too many nodes when they are inlined",
            where=str(path),
            got=f"{total} nodes" if total < 10**15 else "over 10^15 nodes",
            allowed=f"up to {_MOST_NODES}",
            fix="export the model again without functions that call one another so often",
        )


def _count(path: Path, start: Key, bodies: dict[Key, onnx.FunctionProto], counts: dict[Key, int]) -> None:
    """Fill `counts` of `start` and of all that it calls, innermost first; without recursion, for any depth."""
    stack, open_keys = [(start, _list_calls(bodies[start], bodies))], {start}
    while stack:
        key, calls = stack[-1]
        called = next((one for one in calls if one not in counts), None)
        if called is None:
            counts[key] = _sum_nodes(bodies[key].node, counts)
            open_keys.discard(key)
            stack.pop()
            continue
        if called in open_keys:
            raise GraphError(
                f"the function '{called[0]}::{called[1]}' calls itself",
                where=str(path),
                fix="export the model again: an ONNX function has no recursion, a Loop has",
            )
        open_keys.add(called)
        stack.append((called, _list_calls(bodies[called], bodies)))


def _list_calls(function: onnx.FunctionProto, bodies: dict[Key, onnx.FunctionProto]) -> list[Key]:
    return [key for node in walk_nodes(function.node) if (key := (node.domain, node.op_type)) in bodies]


def _sum_nodes(nodes: Iterable[onnx.NodeProto], counts: dict[Key, int]) -> int:
    return sum(counts.get((node.domain, node.op_type), 1) for node in walk_nodes(nodes))
