"""Attention of one new token over a cache -> MetagenStepAttention, with the rotation and the views around it.

q_BHD, k_BKD, v_BKD  (any shape with this order in memory)    H = groups K heads, of D <= 256
past_k, past_v [B, K, S, D], start [B], cos, sin [B, 1, 1, D/2]
    -> out (the shape of q), present_k, present_v
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.graph import Builder, Namer, remove_dead, replace_output
from exporters.passes.step.nodes import ATTENTION, is_kept, list_dims, make_plugin_node
from exporters.passes.step.rotation import Rotation, match_rotation
from exporters.passes.step.views import find_origin, replace_viewed

_LARGEST_HEAD = 256


def is_cached_attention(node: ir.Node) -> bool:
    """Whether this is the op that may be the attention of a decode step."""
    return (node.domain, node.op_type) == ("metagen", "MetagenCachedAttention")


def check_attention(node: ir.Node) -> str | None:
    """Why a MetagenCachedAttention cannot be fused; None: it can."""
    if is_kept(node):
        return "the model keeps it in float32"
    q, k, v, past_k, past_v = (list_dims(value) for value in node.inputs[:5])
    if q is None or k is None or v is None or past_k is None or past_v is None:
        return "its shapes are not known"
    if q[2] != 1:
        return f"it takes {q[2]} new tokens, not one"
    if not all(isinstance(size, int) for size in (q[1], q[3], k[1])):
        return "the number of heads or their size is not known"
    if isinstance(q[3], int) and q[3] > _LARGEST_HEAD:
        return f"of heads of {q[3]} (the plugin takes up to {_LARGEST_HEAD})"
    if not q[3] == k[3] == v[3]:
        return f"keys of {k[3]} and values of {v[3]}"
    return None


def find_batch(node: ir.Node) -> int | str:
    """The first size of its cache; `check_attention` found none missing."""
    dims = list_dims(node.inputs[3])
    assert dims is not None
    return dims[0]


def fuse_attention(graph: ir.Graph, node: ir.Node, namer: Namer) -> bool:
    """Put the plugin's node in place of one that `check_attention` lets through. Returns whether it rotates too."""
    q, k, v, past_k, past_v, start = node.inputs
    assert q is not None and k is not None and v is not None and past_k is not None
    assert past_v is not None and start is not None
    assert q.shape is not None
    node.outputs[0].shape = q.shape.copy()  # inference may not know it
    rotations = _match_rotations(node, q, k)
    if rotations is not None:
        q, k = (one.x for one in rotations)
    inputs = [*(find_origin(value) for value in (q, k, v)), past_k, past_v, start]
    inputs += [rotations[0].cos, rotations[0].sin] if rotations is not None else []
    attributes = node.attributes
    made = make_plugin_node(
        ATTENTION,
        inputs,
        attributes={
            "scale": attributes["scale"].as_float(),
            "groups": attributes["groups"].as_int(),
            "window": attributes["window"].as_int() if "window" in attributes else 0,
            "softcap": attributes["softcap"].as_float() if "softcap" in attributes else 0.0,
            "rotary": int(rotations is not None),
        },
        outputs=[(inputs[0], inputs[0].shape), (past_k, past_k.shape), (past_v, past_v.shape)],
        origin=node,
        namer=namer,
    )
    graph.insert_before(node, made)
    replace_viewed(Builder(graph, node, namer), node.outputs[0], made.outputs[0])
    for old, new in zip(node.outputs[1:], made.outputs[1:], strict=True):
        replace_output(graph, old, new)
    remove_dead(graph, [node])
    return rotations is not None


def _match_rotations(node: ir.Node, q: ir.Value, k: ir.Value) -> tuple[Rotation, Rotation] | None:
    """The rotations of queries and keys, where both are there and by the same tables."""
    batch, dims = find_batch(node), list_dims(q)
    assert dims is not None
    found = []
    for value in (q, k):
        origin = find_origin(value)
        rotation = match_rotation(origin, batch)
        turned = list_dims(origin)
        if rotation is None or turned is None or (turned[0], turned[-1]) != (batch, dims[-1]):
            return None
        found.append(rotation)
    first, second = found
    return (first, second) if (first.cos, first.sin) == (second.cos, second.sin) else None
