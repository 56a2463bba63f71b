"""LowerCachedAttention: metagen::MetagenCachedAttention -> TensorScatter (opset 24) + ONNX Attention.

    k' = TensorScatter(past_k, k, start)        v' = TensorScatter(past_v, v, start)
    mask_B1TS = 0 where s <= start_b + t, else the lowest finite float; layers share it
    out = Attention(q, k', v', mask, scale)

TensorScatter writes in place where the runtime can, ScatterElements (the body) needs an index per element.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from exporters.passes._graph import Builder, Namer, describe_node, list_graphs, notes_of, replace_output
from exporters.passes.lower_attention import build_mask, count_up, identify_dims


class LowerCachedAttention(ir.passes.InPlacePass):
    """Fires on MetagenCachedAttention in any graph; the others keep their body, and the log says why."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        masks: dict[Hashable, ir.Value] = {}
        fired = 0
        for graph in list_graphs(model):
            for node in list(graph):
                if (node.domain, node.op_type) != ("metagen", "MetagenCachedAttention"):
                    continue
                if any(value is None or value.shape is None or len(value.shape) != 4 for value in node.inputs[:5]):
                    reason = "the shapes of q, k, v and the cache are not known to be 4-D"
                    notes.log.append(f"LowerCachedAttention: {describe_node(node)} keeps its body: {reason}")
                    continue
                _rewrite(Builder(graph, node, namer), node, masks)
                fired += 1
        if fired:
            notes.log.append(f"LowerCachedAttention: {fired} nodes became TensorScatter and Attention")
        return ir.passes.PassResult(model, modified=bool(fired))


def _rewrite(build: Builder, node: ir.Node, masks: dict[Hashable, ir.Value]) -> None:
    q, k, v, past_k, past_v, start = node.inputs
    assert q is not None and past_k is not None and past_v is not None and start is not None
    updated = [
        build("TensorScatter", past, new, start, dtype=past.dtype, shape=past.shape, attributes={"axis": 2})
        for past, new in ((past_k, k), (past_v, v))
    ]
    mask = _share_mask(build, masks, q, past_k, start)
    scale = {"scale": node.attributes["scale"].as_float()}
    out = build("Attention", q, *updated, mask, dtype=q.dtype, shape=q.shape, name=node.name or "", attributes=scale)
    build.insert_before(node)
    for old, new in zip(node.outputs, (out, *updated), strict=True):
        replace_output(build.graph, old, new)
    build.graph.remove(node, safe=True)


def _share_mask(
    build: Builder, masks: dict[Hashable, ir.Value], q: ir.Value, past: ir.Value, start: ir.Value
) -> ir.Value:
    """[B, 1, T, S]."""
    assert q.shape is not None and past.shape is not None and q.dtype is not None
    sizes = identify_dims(q.shape[2], past.shape[2])
    key = None if sizes is None else (id(build.graph), id(start), sizes)
    if key is not None and key in masks:
        return masks[key]
    integer = ir.DataType.INT64
    column = build("Unsqueeze", start, build.constant(np.array([1])), dtype=integer)
    position_BT = build("Add", column, count_up(build, q, 2), dtype=integer)
    slot_B1T1 = build("Unsqueeze", position_BT, build.constant(np.array([1, 3])), dtype=integer)
    visible = build("LessOrEqual", count_up(build, past, 2), slot_B1T1, dtype=ir.DataType.BOOL)
    mask = build_mask(build, visible, q.dtype)
    mask.shape = ir.Shape([q.shape[0], 1, q.shape[2], past.shape[2]])
    if key is not None:
        masks[key] = mask
    return mask
