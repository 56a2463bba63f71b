"""Views: nodes that give the same elements in the same order, under another shape.

    Reshape, Flatten, Squeeze, Unsqueeze        always
    Transpose                                   where it moves only axes of size 1: [B, 1, H, D] <-> [B, H, 1, D]

A plugin reads memory and takes no notice of them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.graph import Builder, is_onnx, remove_dead, replace_output
from exporters.passes.step.nodes import find_only_use, list_dims

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def find_origin(value: ir.Value) -> ir.Value:
    """The first value that `value` is a view of, as far back as shapes are known; perhaps itself."""
    while (node := value.producer()) is not None and is_view(node):
        source = node.inputs[0]
        if list_dims(source) is None:
            break
        assert source is not None
        value = source
    return value


def is_view(node: ir.Node) -> bool:
    """Whether the output of `node` is its first input in memory."""
    if is_onnx(node, *_VIEWS):
        return True
    dims = list_dims(node.inputs[0]) if is_onnx(node, "Transpose") else None
    if dims is None:
        return False
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else list(range(len(dims)))[::-1]
    moved = [axis for axis in perm if dims[axis] != 1]
    return moved == sorted(moved)


def replace_viewed(build: Builder, old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand for `old`, whose elements it holds under another shape, and drop views that lead to its own.

    Where none of them has the shape of `new`, a Reshape stays. `new` must have a producer in the graph.
    """
    chain = _follow(old)
    shape = list_dims(new)
    alike = [value for value in chain if list_dims(value) == shape]
    producer = new.producer()
    assert producer is not None and new.shape is not None
    if alike:
        target = alike[-1]
    else:
        target = chain[-1] if _spell(chain[-1]) is not None else chain[0]
        sizes = _spell(target)
        assert sizes is not None
        new = build("Reshape", new, build.constant(np.array(sizes, np.int64)), dtype=new.dtype, shape=target.shape)
        build.graph.insert_after(producer, build.nodes)
        build.nodes = []
    node = target.producer()
    replace_output(build.graph, target, new)
    if target is not old:
        remove_dead(build.graph, [node])


def _follow(value: ir.Value) -> list[ir.Value]:
    """`value` and the views of it that alone read the one before."""
    chain = [value]
    while (node := find_only_use(chain[-1])) is not None and node.inputs[0] is chain[-1] and is_view(node):
        chain.append(node.outputs[0])
    return chain


def _spell(value: ir.Value) -> list[int] | None:
    """The target of a Reshape; None where two sizes are not fixed."""
    dims = list_dims(value)
    if dims is None or sum(isinstance(dim, str) for dim in dims) > 1:
        return None
    return [dim if isinstance(dim, int) else -1 for dim in dims]
