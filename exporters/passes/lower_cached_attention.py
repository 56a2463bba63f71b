"""LowerCachedAttention: metagen::MetagenCachedAttention -> a cache update + ONNX Attention.

    k' = TensorScatter(past_k, k, start)        v' = TensorScatter(past_v, v, start)      (opset 24)
    mask_B1TS = 0 where s <= start_b + t (and s > start_b + t - window), else half the lowest float; layers share it
    out = Attention(q, k', v', mask, scale)

TensorScatter needs no index per element. TensorRT takes it only for a cache of static capacity; there, and where the
capacity is dynamic, `scatter_elements` writes the cache with ScatterElements, whose indices the layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import onnx_ir as ir

from exporters.passes.lower_attention import (
    ANY_HEAD_DIM,
    build_mask,
    check_head_dim,
    check_softcap,
    count_up,
    identify_dims,
)
from exporters.passes.shared.graph import Builder, Namer, describe_node, list_graphs, notes_of, replace_output

Shared = dict[Hashable, ir.Value]
_INDEX = ir.DataType.INT64


class LowerCachedAttention(ir.passes.InPlacePass):
    """Fires on MetagenCachedAttention in any graph; the others keep their body, and the log says why.

    Args:
        scatter_elements: write caches of dynamic capacity with ScatterElements.
        head_dims: the sizes of a head that the target has a kernel for.
    """

    def __init__(self, *, scatter_elements: bool, head_dims: range = ANY_HEAD_DIM) -> None:
        self.scatter_elements, self.head_dims = scatter_elements, head_dims

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        shared: Shared = {}
        fired = 0
        for graph in list_graphs(model):
            for node in list(graph):
                if (node.domain, node.op_type) != ("metagen", "MetagenCachedAttention"):
                    continue
                if reason := _check(node) or check_head_dim(node, self.head_dims) or check_softcap(node):
                    notes.log.append(f"LowerCachedAttention: {describe_node(node)} keeps its body: {reason}")
                    continue
                self._rewrite(Builder(graph, node, namer), node, shared)
                fired += 1
        if fired:
            notes.log.append(f"LowerCachedAttention: {fired} nodes became a cache update and Attention")
        return ir.passes.PassResult(model, modified=bool(fired))

    def _rewrite(self, build: Builder, node: ir.Node, shared: Shared) -> None:
        q, k, v, past_k, past_v, start = node.inputs
        assert q is not None and k is not None and v is not None
        assert past_k is not None and past_k.shape is not None and past_v is not None and start is not None
        slot = _share(shared, build, "slot", start, (q,), lambda: _build_slot(build, q, start))
        if self.scatter_elements and not isinstance(past_k.shape[2], int):
            index = _share(shared, build, "index", start, (k,), lambda: _build_index(build, slot, k))
            updated = [
                build("ScatterElements", past, index, new, dtype=past.dtype, shape=past.shape, attributes={"axis": 2})
                for past, new in ((past_k, k), (past_v, v))
            ]
        else:
            updated = [
                build("TensorScatter", past, new, start, dtype=past.dtype, shape=past.shape, attributes={"axis": 2})
                for past, new in ((past_k, k), (past_v, v))
            ]
        window = node.attributes["window"].as_int() if "window" in node.attributes else 0
        mask = _share(
            shared, build, f"mask{window}", start, (q, past_k), lambda: _build_mask(build, q, past_k, slot, window)
        )
        scale = {"scale": node.attributes["scale"].as_float()}
        out = build(
            "Attention", q, *updated, mask, dtype=q.dtype, shape=q.shape, name=node.name or "", attributes=scale
        )
        build.insert_before(node)
        for old, new in zip(node.outputs, (out, *updated), strict=True):
            replace_output(build.graph, old, new)
        build.graph.remove(node, safe=True)
        attention = out.producer()
        assert attention is not None
        attention.name = node.name


def _check(node: ir.Node) -> str | None:
    if any(value is None or value.shape is None or len(value.shape) != 4 for value in node.inputs[:5]):
        return "the shapes of q, k, v and the cache are not known to be 4-D"
    return None


def _share(
    shared: Shared,
    build: Builder,
    kind: str,
    start: ir.Value,
    sized: tuple[ir.Value, ...],
    make: Callable[[], ir.Value],
) -> ir.Value:
    """What `make` builds, made once for all layers of one graph whose sizes are known to be equal."""
    sizes = identify_dims(*(dim for value in sized if value.shape is not None for dim in value.shape))
    key = None if sizes is None else (kind, id(build.graph), id(start), sizes)
    if key is None or key not in shared:
        made = make()
        if key is None:
            return made
        shared[key] = made
    return shared[key]


def _build_slot(build: Builder, q: ir.Value, start: ir.Value) -> ir.Value:
    """The cache slot of each new token, int64 [B, 1, T, 1]."""
    column = build("Unsqueeze", start, build.constant(np.array([1])), dtype=_INDEX)
    position_BT = build("Add", column, count_up(build, q, 2), dtype=_INDEX)
    return build("Unsqueeze", position_BT, build.constant(np.array([1, 3])), dtype=_INDEX)


def _build_index(build: Builder, slot_B1T1: ir.Value, k: ir.Value) -> ir.Value:
    """The slot of each new element, int64 [B, K, T, D]."""
    return build("Expand", slot_B1T1, build("Shape", k, dtype=_INDEX), dtype=_INDEX, shape=k.shape)


def _build_mask(build: Builder, q: ir.Value, past: ir.Value, slot_B1T1: ir.Value, window: int) -> ir.Value:
    """[B, 1, T, S]."""
    assert q.shape is not None and past.shape is not None and q.dtype is not None
    slot_S = count_up(build, past, 2)
    visible = build("LessOrEqual", slot_S, slot_B1T1, dtype=ir.DataType.BOOL)
    if window:
        oldest = build("Sub", slot_B1T1, build.constant(np.array(window)), dtype=_INDEX)
        inside = build("Greater", slot_S, oldest, dtype=ir.DataType.BOOL)
        visible = build("And", visible, inside, dtype=ir.DataType.BOOL)
    mask = build_mask(build, visible, q.dtype)
    mask.shape = ir.Shape([q.shape[0], 1, q.shape[2], past.shape[2]])
    return mask
