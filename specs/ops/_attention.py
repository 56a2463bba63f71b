"""Attention with and without a key/value cache: the eager meanings, the fake-tensor rules and the wrappers.

The two share the product itself, which is why they share a file.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specs.ops._plain import is_opened, is_plain


def _repeat_heads(x_BKSD: Tensor, num_heads: int) -> Tensor:
    return x_BKSD.repeat_interleave(num_heads // x_BKSD.shape[1], dim=1)


def _attend(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None, visible: Tensor | None, softcap: float
) -> Tensor:
    """softmax(cap(q k^T) + bias) v; `visible` (bool, broadcasts to BHTS) is False at keys that must not be seen."""
    heads = q_BHTD.shape[1]
    scores_BHTS = q_BHTD @ _repeat_heads(k_BKSD, heads).transpose(-1, -2)
    if softcap:
        scores_BHTS = (scores_BHTS / softcap).tanh() * softcap
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    if visible is not None:
        scores_BHTS = scores_BHTS.masked_fill(~visible, torch.finfo(scores_BHTS.dtype).min)
    return scores_BHTS.softmax(-1) @ _repeat_heads(v_BKSD, heads)


def _compute_attention(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float = 0.0,
) -> Tensor:
    visible = None
    if causal or window:
        query_T1 = torch.arange(q_BHTD.shape[2], device=q_BHTD.device)[:, None]
        key_1S = torch.arange(k_BKSD.shape[2], device=q_BHTD.device)[None, :]
        visible = key_1S <= query_T1 if causal else torch.ones_like(key_1S <= query_T1)
        if window:
            visible = visible & (key_1S > query_T1 - window)
    return _attend(q_BHTD * scale, k_BKSD, v_BKSD, bias, visible, softcap).contiguous()


@torch.library.custom_op("metagen::attention", _compute_attention, mutates_args=()).register_fake
def _attention_fake(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float = 0.0,
) -> Tensor:
    return torch.empty_like(q_BHTD, memory_format=torch.contiguous_format)


def _compute_cached_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    past_k_BKSD: Tensor,
    past_v_BKSD: Tensor,
    start_B: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, capacity = q_BHTD.shape[2], past_k_BKSD.shape[2]
    position_BT = start_B[:, None] + torch.arange(steps, device=start_B.device)[None, :]
    slot_B1T1 = position_BT[:, None, :, None]
    k_BKSD = past_k_BKSD.scatter(2, slot_B1T1.expand_as(k_BKTD), k_BKTD)
    v_BKSD = past_v_BKSD.scatter(2, slot_B1T1.expand_as(v_BKTD), v_BKTD)
    slot_S = torch.arange(capacity, device=start_B.device)
    visible_B1TS = slot_S <= slot_B1T1
    if window:
        visible_B1TS = visible_B1TS & (slot_S > slot_B1T1 - window)
    return _attend(q_BHTD * scale, k_BKSD, v_BKSD, None, visible_B1TS, softcap).contiguous(), k_BKSD, v_BKSD


@torch.library.custom_op("metagen::cached_attention", _compute_cached_attention, mutates_args=()).register_fake
def _cached_attention_fake(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    past_k_BKSD: Tensor,
    past_v_BKSD: Tensor,
    start_B: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(q_BHTD, memory_format=contiguous),
        torch.empty_like(past_k_BKSD, memory_format=contiguous),
        torch.empty_like(past_v_BKSD, memory_format=contiguous),
    )


def attention(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """softmax(scale q k^T + bias) v (Vaswani et al. 2017), for MHA, GQA (K divides H) and MQA (K = 1).

    Args:
        bias: added to the scores; broadcasts to [B, H, T, S].
        scale: usually D ** -0.5; a temperature divides it.
        causal: query t sees keys s <= t.
        window: when positive, query t sees only keys s > t - window.
        softcap: when positive, scores become softcap * tanh(scores / softcap) before the bias (Gemma 2).

    Returns:
        [B, H, T, D].
    """
    if is_plain() and not window and not softcap:
        grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
        return functional.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, bias, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    run = _compute_attention if is_opened() else torch.ops.metagen.attention
    result: Tensor = run(q_BHTD, k_BKSD, v_BKSD, bias, scale, causal, window, softcap)
    return result


def cached_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    past_k_BKSD: Tensor,
    past_v_BKSD: Tensor,
    start_B: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over a key/value cache of fixed capacity S, of which row b holds `start_B[b]` (int64) tokens.

    New keys and values are written at [start, start + T), which must lie below S; query t of row b sees slots
    s <= start_B[b] + t, so whatever lies beyond (padding, stale data) has no influence. `window` and `softcap` as for
    `attention`.

    Returns:
        attended [B, H, T, D], and the updated caches [B, K, S, D].
    """
    run = _compute_cached_attention if is_opened() else torch.ops.metagen.cached_attention
    out, k, v = run(q_BHTD, k_BKTD, v_BKTD, past_k_BKSD, past_v_BKSD, start_B, scale, window, softcap)
    return out, k, v
