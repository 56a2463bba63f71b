"""SelectMaskedScores: a mask that differs by row is applied by Where, not by Add (TensorRT 8.6).

    softmax(scores_BHTS + Where(visible_B1TS, 0, low))   =>   softmax(Where(visible_B1TS, scores_BHTS, low))

Measured on an H200 with TensorRT 8.6.0, fp16, three rows of different lengths, one query a row (T = 1), 4 heads over 2:

    Add of the mask                                            rows 1 and 2 take row 0's mask (error 2.2 x rms)
    the mask expanded to BHTS, or added to a zero BHT1         wrong too, row 0 as well (4.1)
    Min, a maximum subtracted, or a Reshape before the Softmax wrong as the Add: it is not the fused kernel's doing
    Where                                                      right (1.3e-3); 28 us, as the Add, batch 1, 1024 slots
    the mask as one more channel of q and k                    right; 75 us
    queries of a group as T, keys not repeated                 right; 34 us, but 62 us instead of 106 us at batch 8

Only one static query was wrong: with T = 4, and with a dynamic T, every form was right and equally fast. The pass fires
for one query and for a dynamic number of them; several keep the Add, in which form the whole decoder is proven
(`lower_cached_step`). Both say the same: a row that sees nothing is uniform either way. Where it is not (two masks that
hide different parts; -10000, which leaves the scores' differences) the masked branch is scores + low, the Add's own
numbers; this form was not run on 8.6.

Not here: masks that all rows share (causal, window), which keep their Add; a bias that is no mask (ALiBi, or a float
input), which keeps it too: the log says so where it is in danger.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.graph import (
    Builder,
    Namer,
    describe_node,
    is_onnx,
    list_graphs,
    notes_of,
    read_constant,
    take_over,
)

#: What stands for "must not be seen" is at or below this; anything above may be a real bias.
_LOWEST_BIAS = -1e4
#: At or below this a score vanishes in the sum: a row of nothing else is uniform, whatever its scores.
_ABSORBING = -1e9
#: A mask may pass through these on its way to the scores.
_SHAPES_ONLY = ("Unsqueeze", "Expand", "Identity")


class SelectMaskedScores(ir.passes.InPlacePass):
    """Fires on an Add of a mask by row on the way into a Softmax over the last axis. Needs shapes (InferTypes)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        fired = 0
        for graph in list_graphs(model):
            for softmax in [node for node in graph if is_onnx(node, "Softmax") and _is_over_last_axis(node)]:
                reasons = {add: _check(add) for add in _list_adds(softmax)}
                alone = list(reasons.values()).count(None) == 1
                for add, reason in reasons.items():
                    if reason is None:
                        _rewrite(Builder(graph, add, namer), add, alone=alone)
                        fired += 1
                    elif reason:
                        notes.log.append(f"SelectMaskedScores: {describe_node(add)} stays: {reason}")
        if fired:
            notes.log.append(f"SelectMaskedScores: {fired} masks became a Where")
        return ir.passes.PassResult(model, modified=bool(fired))


def _is_over_last_axis(softmax: ir.Node) -> bool:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    scores = softmax.inputs[0]
    return axis == -1 or (scores is not None and scores.shape is not None and axis == len(scores.shape) - 1)


def _list_adds(softmax: ir.Node) -> list[ir.Node]:
    """The Adds in front of `softmax`, nearest first, that only it reads."""
    adds, value = [], softmax.inputs[0]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or not is_onnx(node, "Add"):
            break
        adds.append(node)
        value = _split(node)[0]
    return adds


def _split(add: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """(scores, bias) of an Add: the scores have heads, the bias has none or is not computed from them."""
    first, second = add.inputs
    if _has_one_head(first) and not _has_one_head(second):
        return second, first
    return first, second


def _has_one_head(value: ir.Value | None) -> bool:
    shape = value.shape if value is not None else None
    return shape is not None and (len(shape) < 3 or shape[-3] == 1)


def _check(add: ir.Node) -> str | None:
    """None to fire, "" for a bias that is in no danger, else why a bias that is stays an Add."""
    scores, bias = _split(add)
    if bias is None or bias.shape is None or len(bias.shape) < 4 or bias.shape[0] == 1 or not _has_one_head(bias):
        return ""
    if scores is None or scores.shape is None or len(scores.shape) < len(bias.shape):
        return ""
    queries = scores.shape[-2]
    if isinstance(queries, int) and queries > 1:
        return ""
    if _find_mask(bias) is not None:
        return None
    if queries != 1:
        return ""
    return "its bias differs by row and is no Where of 0 and a lowest value; 8.6 takes row 0's for every row"


def _find_mask(bias: ir.Value) -> ir.Node | None:
    """The Where(condition, 0, low) or Where(condition, low, 0) that `bias` is, looking through changes of shape."""
    node = bias.producer()
    while node is not None and is_onnx(node, *_SHAPES_ONLY):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or not is_onnx(node, "Where"):
        return None
    kept, masked = _order_branches(node)
    return node if kept == 0.0 and masked is not None and masked <= _LOWEST_BIAS else None


def _order_branches(where: ir.Node) -> tuple[float | None, float | None]:
    """(the larger, the smaller) of its two constants; None for one that is no single number."""
    branches = sorted(number for value in where.inputs[1:] if (number := _read_number(value)) is not None)
    return (branches[1], branches[0]) if len(branches) == 2 else (None, None)


def _read_number(value: ir.Value | None) -> float | None:
    tensor = read_constant(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().reshape(()))


def _rewrite(build: Builder, add: ir.Node, *, alone: bool) -> None:
    """Where(visible, scores, low), or Where(visible, scores, scores + low) where a row that sees nothing tells them
    apart: under two masks, or under a `low` that leaves something of the scores.
    """
    scores, bias = _split(add)
    assert scores is not None and bias is not None
    where = _find_mask(bias)
    assert where is not None
    condition = _follow_shapes(build, bias, where)
    lowest = _order_branches(where)[1]
    assert lowest is not None
    dtype = add.outputs[0].dtype
    assert dtype is not None
    low = build.constant(np.array(lowest, dtype.numpy()))
    if not alone or lowest > _ABSORBING:
        low = build("Add", scores, low, dtype=dtype, shape=scores.shape)
    visible_first = _read_number(where.inputs[1]) == 0.0
    branches = (scores, low) if visible_first else (low, scores)
    out = build("Where", condition, *branches, dtype=dtype, shape=add.outputs[0].shape)
    build.insert_before(add)
    take_over(build.graph, [add], add, out)


def _follow_shapes(build: Builder, value: ir.Value, where: ir.Node) -> ir.Value:
    """The condition of `where`, brought into shape as `value` was from its output."""
    node = value.producer()
    assert node is not None
    if node is where:
        assert where.inputs[0] is not None
        return where.inputs[0]
    source = node.inputs[0]
    assert source is not None
    inner = _follow_shapes(build, source, where)
    return build(node.op_type, inner, *node.inputs[1:], dtype=ir.DataType.BOOL, shape=value.shape)
