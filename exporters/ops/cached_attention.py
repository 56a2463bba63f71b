"""MetagenCachedAttention: attention over a key/value cache of fixed capacity, the body in standard ONNX.

New keys and values are scattered to slots start .. start + T - 1 of each row; query t sees slots s <= start + t, and
with a window those s > start + t - window.
A fixed capacity keeps every shape of a decode step the same, so that a GPU can replay it as a graph.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.attention import attend, mask_unless, repeat_heads
from exporters.ops.base import Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(
    q: Any,
    k: Any,
    v: Any,
    past_k: Any,
    past_v: Any,
    start: Any,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Any:
    """Writes k and v into the cache at `start`, then attends to slots s <= start + t, and s > start + t - window."""
    given = {"window": window} if window else {}
    capped = {"softcap": softcap} if softcap else {}
    return metagen_opset().MetagenCachedAttention(
        q, k, v, past_k, past_v, start, scale=scale, groups=q.shape[1] // k.shape[1], **given, **capped
    )


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    q, k, v, past_k, past_v, start = inputs
    assert q is not None and k is not None and v is not None
    assert past_k is not None and past_v is not None and start is not None
    start_B1 = body("Unsqueeze", start, body.constant([1]))
    position_BT = body("Add", start_B1, body.count_up(body.dim(q, 2)))
    slot_B1T1 = body("Unsqueeze", position_BT, body.constant([1, 3]))
    slot_BKTD = body("Expand", slot_B1T1, body("Shape", k))
    k_BKSD = body("ScatterElements", past_k, slot_BKTD, k, axis=2)
    v_BKSD = body("ScatterElements", past_v, slot_BKTD, v, axis=2)
    slot_S = body.count_up(body.dim(past_k, 2))
    visible_B1TS = body("LessOrEqual", slot_S, slot_B1T1)
    if window := int(attributes.get("window", 0)):
        inside = body("Greater", slot_S, body("Sub", slot_B1T1, body.constant(window)))
        visible_B1TS = body("And", visible_B1TS, inside)
    groups = int(attributes["groups"])
    out = attend(
        body,
        q,
        repeat_heads(body, k_BKSD, groups),
        repeat_heads(body, v_BKSD, groups),
        attributes,
        [mask_unless(body, visible_B1TS)],
    )
    return [out, k_BKSD, v_BKSD]


CACHED_ATTENTION = CustomOp(
    name="MetagenCachedAttention",
    torch_op=torch.ops.metagen.cached_attention.default,
    inputs={"q": "T", "k": "T", "v": "T", "past_k": "T", "past_v": "T", "start": "I"},
    outputs=("out", "present_k", "present_v"),
    attributes={
        "scale": ir.AttributeType.FLOAT,
        "groups": ir.AttributeType.INT,
        "window?": ir.AttributeType.INT,
        "softcap?": ir.AttributeType.FLOAT,
    },
    translate=_translate,
    build_body=_build_body,
)
