"""LowerAttention: metagen::MetagenAttention -> ONNX Attention (opset 23), where the target has that operator.

    Attention(q_BHTD, k_BKSD, v_BKSD[, mask], scale, is_causal)                        4-D: what TensorRT 11 fuses
    Attention(q_BTC, k_BSC, v_BSC[, mask], q_num_heads, kv_num_heads, scale, ...)      3-D: `fold_heads`

The 3-D form takes the projections as they come, so that the head transposes around the op disappear. Measured on
ONNX Runtime 1.31, CPU, ViT-B shapes: 3-D 1.2x the decomposed pattern, 4-D and the contrib MultiHeadAttention 1.0x.

A causal op without bias keeps `is_causal`; a window, or causal with a bias, becomes an additive mask whose lowest
value is finite, so that a row that sees nothing is uniform as in torch, never NaN. It is half the lowest float: of a
row that holds the lowest one alone, ONNX Runtime 1.31 makes zeros. Where the op does not fire, its
function body is inlined instead, and the log says why.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.graph import (
    Builder,
    Namer,
    describe_node,
    is_onnx,
    list_graphs,
    notes_of,
    take_over,
)

#: No limit.
ANY_HEAD_DIM = range(1, 1 << 30)
_MASKED = np.float32(np.finfo(np.float32).min / 2)
_HEADS_FIRST = (0, 2, 1, 3)  # [B, T, H, D] <-> [B, H, T, D]


class LowerAttention(ir.passes.InPlacePass):
    """Fires on MetagenAttention in any graph.

    Args:
        fold_heads: use the 3-D form where q, k, v and the result only pass through head transposes.
        head_dims: the sizes of a head that the target has a kernel for.
    """

    def __init__(self, *, fold_heads: bool, head_dims: range = ANY_HEAD_DIM) -> None:
        self.fold_heads, self.head_dims = fold_heads, head_dims

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        masks: dict[Hashable, ir.Value] = {}
        fired = 0
        for graph in list_graphs(model):
            for node in list(graph):
                if (node.domain, node.op_type) != ("metagen", "MetagenAttention"):
                    continue
                reason = check_head_dim(node, self.head_dims) or check_softcap(node) or check_attention(node)
                if reason:
                    notes.log.append(f"LowerAttention: {describe_node(node)} keeps its body: {reason}")
                    continue
                self._rewrite(Builder(graph, node, namer), node, masks)
                fired += 1
        if fired:
            notes.log.append(f"LowerAttention: {fired} nodes became Attention")
        return ir.passes.PassResult(model, modified=bool(fired))

    def _rewrite(self, build: Builder, node: ir.Node, masks: dict[Hashable, ir.Value]) -> None:
        q, k, v = node.inputs[:3]
        assert q is not None and k is not None and v is not None
        bias = node.inputs[3] if len(node.inputs) > 3 else None
        causal, window = node.attributes["causal"].as_int(), node.attributes["window"].as_int()
        attributes: dict[str, int | float] = {"scale": node.attributes["scale"].as_float()}
        if causal and not window and bias is None:
            attributes["is_causal"] = 1
        elif causal or window:
            mask = _share_mask(build, masks, q, k, bool(causal), window)
            bias = mask if bias is None else build("Add", bias, mask, dtype=q.dtype)
        folded = _find_folded(node) if self.fold_heads else None
        if folded is not None:
            (q, k, v), target, heads = folded
            attributes.update(q_num_heads=heads[0], kv_num_heads=heads[1])
        else:
            target = node
        operands = [q, k, v] if bias is None else [q, k, v, bias]
        out = build(
            "Attention",
            *operands,
            dtype=q.dtype,
            shape=target.outputs[0].shape,
            attributes=attributes,
        )
        build.insert_before(node)
        take_over(build.graph, [target, node], node, out)


def check_head_dim(node: ir.Node, head_dims: range) -> str | None:
    """Why the target has no kernel for this node's heads, or None."""
    q = node.inputs[0]
    size = q.shape[3] if q is not None and q.shape is not None and len(q.shape) == 4 else None
    if head_dims is ANY_HEAD_DIM or (isinstance(size, int) and size in head_dims):
        return None
    return f"the target's Attention takes heads of {head_dims.start} to {head_dims.stop - 1} channels, not {size}"


def check_softcap(node: ir.Node) -> str | None:
    """A reason where scores are capped: the versions of ONNX Attention do not agree whether mask or cap is first."""
    if "softcap" not in node.attributes:
        return None
    return "its scores are capped, which Attention does before or after the mask depending on who implements it"


def check_attention(node: ir.Node) -> str | None:
    """Why this MetagenAttention cannot become an Attention, or None."""
    if any(value is None or value.shape is None or len(value.shape) != 4 for value in node.inputs[:3]):
        return "the shapes of q, k and v are not known to be 4-D"
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    if bias is None:
        return None
    if bias.shape is None or len(bias.shape) not in (2, 3, 4):
        return "its bias is not known to have 2 to 4 dimensions"
    if len(bias.shape) == 3:
        return "a 3-D bias broadcasts differently in Attention"
    q, k = node.inputs[0], node.inputs[1]
    assert q is not None and q.shape is not None and k is not None and k.shape is not None
    for name, got, wanted in (("T", bias.shape[-2], q.shape[2]), ("S", bias.shape[-1], k.shape[2])):
        if got != wanted or (isinstance(got, ir.SymbolicDim) and got.value is None):
            return f"its bias has {got} in place of {name} = {wanted}"
    return None


def build_mask(build: Builder, visible: ir.Value, dtype: ir.DataType) -> ir.Value:
    """0 where `visible`, else half the lowest float."""
    low = build.constant(np.array(_MASKED, dtype=dtype.numpy()))
    return build("Where", visible, build.constant(np.array(0, dtype=dtype.numpy())), low, dtype=dtype)


def count_up(build: Builder, value: ir.Value, axis: int) -> ir.Value:
    """0 .. size of `axis` - 1, int64 [size]."""
    shape = build("Shape", value, dtype=ir.DataType.INT64, attributes={"start": axis, "end": axis + 1})
    size = build("Squeeze", shape, build.constant(np.array([0])), dtype=ir.DataType.INT64)
    return build("Range", build.constant(np.array(0)), size, build.constant(np.array(1)), dtype=ir.DataType.INT64)


def identify_dims(*dims: int | ir.SymbolicDim) -> tuple[Hashable, ...] | None:
    """A key under which equal sizes are equal, None when one is not known."""
    keys = [dim if isinstance(dim, int) else dim.value for dim in dims]
    return None if any(key is None for key in keys) else tuple(keys)


def _share_mask(
    build: Builder, masks: dict[Hashable, ir.Value], q: ir.Value, k: ir.Value, causal: bool, window: int
) -> ir.Value:
    """The [T, S] mask; layers of equal sizes in one graph share one."""
    assert q.shape is not None and k.shape is not None and q.dtype is not None
    sizes = identify_dims(q.shape[2], k.shape[2])
    key = None if sizes is None else (id(build.graph), sizes, causal, window)
    if key is not None and key in masks:
        return masks[key]
    query = build("Unsqueeze", count_up(build, q, 2), build.constant(np.array([1])), dtype=ir.DataType.INT64)
    keys = build("Unsqueeze", count_up(build, k, 2), build.constant(np.array([0])), dtype=ir.DataType.INT64)
    rules = []
    if causal:
        rules.append(build("LessOrEqual", keys, query, dtype=ir.DataType.BOOL))
    if window:
        oldest = build("Sub", query, build.constant(np.array(window)), dtype=ir.DataType.INT64)
        rules.append(build("Greater", keys, oldest, dtype=ir.DataType.BOOL))
    visible = rules[0] if len(rules) == 1 else build("And", *rules, dtype=ir.DataType.BOOL)
    mask = build_mask(build, visible, q.dtype)
    mask.shape = ir.Shape([q.shape[2], k.shape[2]])
    if key is not None:
        masks[key] = mask
    return mask


def _find_folded(node: ir.Node) -> tuple[list[ir.Value], ir.Node, tuple[int, int]] | None:
    """The three [B, T, C] values, the node that gives the [B, T, C] result, and the numbers of heads."""
    sources = [_find_heads_source(value) for value in node.inputs[:3]]
    merge = _find_heads_merge(node.outputs[0])
    q, k = node.inputs[0], node.inputs[1]
    assert q is not None and q.shape is not None and k is not None and k.shape is not None
    query_heads, key_heads = q.shape[1], k.shape[1]
    if merge is None or any(source is None for source in sources):
        return None
    if not isinstance(query_heads, int) or not isinstance(key_heads, int):
        return None
    return [source for source in sources if source is not None], merge, (query_heads, key_heads)


def _find_heads_source(value: ir.Value | None) -> ir.Value | None:
    """x of Transpose(Reshape(x [B, T, H D], [B, T, H, D]), 0 2 1 3)."""
    transpose = value.producer() if value is not None else None
    if value is None or value.shape is None or transpose is None or not _is_heads_transpose(transpose):
        return None
    reshape = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    source = reshape.inputs[0] if reshape is not None and is_onnx(reshape, "Reshape") else None
    if source is None or source.shape is None or len(source.shape) != 3:
        return None
    heads, size, channels = value.shape[1], value.shape[3], source.shape[2]
    whole = isinstance(heads, int) and isinstance(size, int) and heads * size == channels
    # B and T must survive the Reshape unchanged: [B, T, H, D] of [B, T, H D]
    kept = whole and [str(d) for d in value.shape.dims[0::2]] == [str(d) for d in source.shape.dims[:2]]
    return source if kept else None


def _find_heads_merge(value: ir.Value) -> ir.Node | None:
    """The Reshape of Reshape(Transpose(value, 0 2 1 3), [B, T, H D]) when nothing else reads in between."""
    transpose = _only_user(value)
    if transpose is None or not _is_heads_transpose(transpose):
        return None
    reshape = _only_user(transpose.outputs[0])
    if reshape is None or not is_onnx(reshape, "Reshape") or value.shape is None:
        return None
    shape, heads, size = reshape.outputs[0].shape, value.shape[1], value.shape[3]
    if shape is None or len(shape) != 3 or not isinstance(heads, int) or not isinstance(size, int):
        return None
    same = [str(dim) for dim in shape.dims[:2]] == [str(dim) for dim in value.shape.dims[0::2]]
    return reshape if shape[2] == heads * size and same else None


def _is_heads_transpose(node: ir.Node) -> bool:
    return (
        is_onnx(node, "Transpose") and "perm" in node.attributes and node.attributes["perm"].as_ints() == _HEADS_FIRST
    )


def _only_user(value: ir.Value) -> ir.Node | None:
    users = value.uses()
    return None if value.is_graph_output() or len(users) != 1 else next(iter(users)).node
