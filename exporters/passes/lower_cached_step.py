"""LowerCachedStep: attention of one new token over a cache -> selects and grouped queries (TensorRT 8.6).

    k'_BKSD   = Where(s == start_b, k_BK1D, past_k_BKSD)          v' likewise
    q_BKGD    = Reshape(scale q_BH1D)                             G = H / K queries share a head of the cache
    out_BH1D  = Reshape(softmax(q_BKGD k'^T + mask_B11S) v')

The op's body scatters the new token and repeats the cache's heads, for which it computes with shapes. Measured on an
H200 with TensorRT 8.6.0, fp16, a decoder of 8 heads over 2 (`benchmarks/RESULTS.md`):

    12 layers, the body, two profiles       no engine: DCHECK(shape_remap_targets_.count(sg)) failed
    12 layers, this form, two profiles      right, every row (8e-3)
    2 layers, 1024 slots, batch 1 / 8, us   this 109 / 206; ScatterElements 143 / 246; heads repeated 116 / 394

With G > 1 the mask is an Add, which 8.6 gets wrong for one query alone: there it is a Where (`select_masked_scores`).
A token whose slot lies behind the cache is not written; ScatterElements leaves that undefined.

Not here: several new tokens at once, or a number that is not known; they keep the body, and the log says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import onnx_ir as ir

from exporters.ops.base import MASKED
from exporters.passes.lower_attention import count_up, identify_dims
from exporters.passes.shared.graph import Builder, Namer, describe_node, list_graphs, notes_of, replace_output

_INDEX, _BOOL = ir.DataType.INT64, ir.DataType.BOOL


class LowerCachedStep(ir.passes.InPlacePass):
    """Fires on MetagenCachedAttention of one token in any graph. Needs shapes (InferTypes), and the op not inlined."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        shared = _Shared()
        fired = 0
        for graph in list_graphs(model):
            for node in list(graph):
                if (node.domain, node.op_type) != ("metagen", "MetagenCachedAttention"):
                    continue
                if reason := _check(node):
                    notes.log.append(f"LowerCachedStep: {describe_node(node)} keeps its body: {reason}")
                    continue
                _rewrite(Builder(graph, node, namer), node, shared)
                fired += 1
        if fired:
            notes.log.append(f"LowerCachedStep: {fired} nodes became selects and products of grouped queries")
        return ir.passes.PassResult(model, modified=bool(fired))


class _Shared:
    """What layers of one graph, one start and one capacity have in common is built once."""

    def __init__(self) -> None:
        self._made: dict[Hashable, ir.Value] = {}

    def __call__(self, build: Builder, kind: str, node: ir.Node, make: Callable[[], ir.Value]) -> ir.Value:
        past_k, start = node.inputs[3], node.inputs[5]
        assert past_k is not None and past_k.shape is not None
        capacity = identify_dims(past_k.shape[2])
        if capacity is None:
            return make()
        key = (kind, id(build.graph), id(start), capacity)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _check(node: ir.Node) -> str | None:
    if any(value is None or value.shape is None or len(value.shape) != 4 for value in node.inputs[:5]):
        return "the shapes of q, k, v and the cache are not known to be 4-D"
    q, k = node.inputs[:2]
    assert q is not None and q.shape is not None and k is not None and k.shape is not None
    if q.shape[2] != 1:
        return f"it takes {q.shape[2]} new tokens, not one"
    sizes = (q.shape[1], q.shape[3], k.shape[1])
    return None if all(isinstance(size, int) for size in sizes) else "the number of heads or their size is not known"


def _rewrite(build: Builder, node: ir.Node, shared: _Shared) -> None:
    q, k, v, past_k, past_v, start = node.inputs
    assert q is not None and k is not None and v is not None
    assert past_k is not None and past_v is not None and start is not None
    slot_S = shared(build, "slot", node, lambda: count_up(build, past_k, 2))
    start_B111 = shared(build, "start", node, lambda: build("Unsqueeze", start, _ints(build, 1, 2, 3), dtype=_INDEX))

    def find_written() -> ir.Value:
        slot_S1 = build("Unsqueeze", slot_S, _ints(build, 1), dtype=_INDEX)
        return build("Equal", slot_S1, start_B111, dtype=_BOOL)

    written_B1S1 = shared(build, "written", node, find_written)
    keys, values = (
        build("Where", written_B1S1, new, past, dtype=past.dtype, shape=past.shape)
        for new, past in ((k, past_k), (v, past_v))
    )
    window = node.attributes["window"].as_int() if "window" in node.attributes else 0
    visible_B11S = shared(
        build, f"visible{window}", node, lambda: _find_visible(build, past_k, slot_S, start_B111, window)
    )
    out = _attend(build, node, keys, values, visible_B11S)
    build.insert_before(node)
    for old, new in zip(node.outputs, (out, keys, values), strict=True):
        replace_output(build.graph, old, new)
    build.graph.remove(node, safe=True)


def _attend(build: Builder, node: ir.Node, keys: ir.Value, values: ir.Value, visible_B11S: ir.Value) -> ir.Value:
    q, k = node.inputs[:2]
    assert q is not None and q.shape is not None and k is not None and k.shape is not None
    dtype, (batch, heads, _, size) = q.dtype, q.shape.dims
    shared_by = int(heads) // int(k.shape[1])  # type: ignore[arg-type]  # ints, by _check
    grouped = ir.Shape([batch, k.shape[1], shared_by, size])
    q = build("Mul", q, _number(build, q, node.attributes["scale"].as_float()), dtype=dtype, shape=q.shape)
    q_BKGD = build("Reshape", q, _ints(build, 0, *grouped.dims[1:]), dtype=dtype, shape=grouped)
    keys_BKDS = build("Transpose", keys, dtype=dtype)
    transpose = keys_BKDS.producer()
    assert transpose is not None
    transpose.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 3, 2])
    scores = build("MatMul", q_BKGD, keys_BKDS, dtype=dtype)
    if "softcap" in node.attributes:
        cap = _number(build, q, node.attributes["softcap"].as_float())
        scores = build("Mul", build("Tanh", build("Div", scores, cap, dtype=dtype), dtype=dtype), cap, dtype=dtype)
    low = _number(build, q, MASKED)
    if shared_by > 1:
        mask = build("Where", visible_B11S, _number(build, q, 0.0), low, dtype=dtype, shape=visible_B11S.shape)
        scores = build("Add", scores, mask, dtype=dtype)
    else:
        scores = build("Where", visible_B11S, scores, low, dtype=dtype)
    weights = build("Softmax", scores, dtype=dtype, attributes={"axis": -1})
    out_BKGD = build("MatMul", weights, values, dtype=dtype, shape=grouped)
    shape = _ints(build, 0, int(heads), 1, int(size))  # type: ignore[arg-type]
    return build("Reshape", out_BKGD, shape, dtype=dtype, shape=q.shape, name=node.name or "")


def _find_visible(build: Builder, past_k: ir.Value, slot_S: ir.Value, start_B111: ir.Value, window: int) -> ir.Value:
    """Slots that the token sees, bool [B, 1, 1, S]: up to its own, and with a window no older than that."""
    visible = build("LessOrEqual", slot_S, start_B111, dtype=_BOOL)
    if window:
        oldest = build("Sub", start_B111, build.constant(np.array(window)), dtype=_INDEX)
        visible = build("And", visible, build("Greater", slot_S, oldest, dtype=_BOOL), dtype=_BOOL)
    assert past_k.shape is not None
    visible.shape = ir.Shape([past_k.shape[0], 1, 1, past_k.shape[2]])
    return visible


def _ints(build: Builder, *values: int | ir.SymbolicDim) -> ir.Value:
    return build.constant(np.array(values, np.int64))


def _number(build: Builder, like: ir.Value, value: float) -> ir.Value:
    assert like.dtype is not None
    return build.constant(np.array(value, like.dtype.numpy()))
