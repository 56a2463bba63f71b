"""The eager meaning and the fake-tensor rule of every custom op: the oracle that each lowering is compared with.

A custom op is a named boundary around a real body. Here is the body in torch; `exporters/ops/` holds the same body in
ONNX, and the passes hold what each target class turns it into. Models call the wrappers at the end of this file.

Shape letters: B batch, T query sequence, S key/value sequence, H heads, K key/value heads, D head dim, C channels,
F hidden width of a gated layer, M modalities.

Not here: dropout and other training-only behaviour.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

GateActivation = Literal["silu", "gelu", "gelu_tanh"]


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return functional.silu(x)
    if activation == "gelu":
        return functional.gelu(x)
    if activation == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    raise ValueError(f"activation must be silu, gelu or gelu_tanh, got {activation!r}")


def _repeat_heads(x_BKSD: Tensor, num_heads: int) -> Tensor:
    return x_BKSD.repeat_interleave(num_heads // x_BKSD.shape[1], dim=1)


def _attend(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None, visible: Tensor | None) -> Tensor:
    """softmax(q k^T + bias) v, where `visible` (bool, broadcasts to BHTS) is False at keys that must not be seen."""
    heads = q_BHTD.shape[1]
    scores_BHTS = q_BHTD @ _repeat_heads(k_BKSD, heads).transpose(-1, -2)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    if visible is not None:
        scores_BHTS = scores_BHTS.masked_fill(~visible, torch.finfo(scores_BHTS.dtype).min)
    return scores_BHTS.softmax(-1) @ _repeat_heads(v_BKSD, heads)


def _compute_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None, scale: float, causal: bool, window: int
) -> Tensor:
    visible = None
    if causal or window:
        query_T1 = torch.arange(q_BHTD.shape[2], device=q_BHTD.device)[:, None]
        key_1S = torch.arange(k_BKSD.shape[2], device=q_BHTD.device)[None, :]
        visible = key_1S <= query_T1 if causal else torch.ones_like(key_1S <= query_T1)
        if window:
            visible = visible & (key_1S > query_T1 - window)
    return _attend(q_BHTD * scale, k_BKSD, v_BKSD, bias, visible).contiguous()


@torch.library.custom_op("metagen::attention", _compute_attention, mutates_args=()).register_fake
def _attention_fake(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None, scale: float, causal: bool, window: int
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
) -> tuple[Tensor, Tensor, Tensor]:
    steps, capacity = q_BHTD.shape[2], past_k_BKSD.shape[2]
    position_BT = start_B[:, None] + torch.arange(steps, device=start_B.device)[None, :]
    slot_B1T1 = position_BT[:, None, :, None]
    k_BKSD = past_k_BKSD.scatter(2, slot_B1T1.expand_as(k_BKTD), k_BKTD)
    v_BKSD = past_v_BKSD.scatter(2, slot_B1T1.expand_as(v_BKTD), v_BKTD)
    visible_B1TS = torch.arange(capacity, device=start_B.device) <= slot_B1T1
    return _attend(q_BHTD * scale, k_BKSD, v_BKSD, None, visible_B1TS).contiguous(), k_BKSD, v_BKSD


@torch.library.custom_op("metagen::cached_attention", _compute_cached_attention, mutates_args=()).register_fake
def _cached_attention_fake(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    past_k_BKSD: Tensor,
    past_v_BKSD: Tensor,
    start_B: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(q_BHTD, memory_format=contiguous),
        torch.empty_like(past_k_BKSD, memory_format=contiguous),
        torch.empty_like(past_v_BKSD, memory_format=contiguous),
    )


def _compute_gated_linear(x: Tensor, gate_weight_FC: Tensor, up_weight_FC: Tensor, activation: str) -> Tensor:
    return _activate(functional.linear(x, gate_weight_FC), activation) * functional.linear(x, up_weight_FC)


@torch.library.custom_op("metagen::gated_linear", _compute_gated_linear, mutates_args=()).register_fake
def _gated_linear_fake(x: Tensor, gate_weight_FC: Tensor, up_weight_FC: Tensor, activation: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], gate_weight_FC.shape[0]))


def _compute_gated_fusion(a: Tensor, b: Tensor, gate_weight_CG: Tensor, gate_bias_C: Tensor) -> Tensor:
    gate = functional.linear(torch.cat([a, b], dim=-1), gate_weight_CG, gate_bias_C).sigmoid()
    return gate * a + (1 - gate) * b


@torch.library.custom_op("metagen::gated_fusion", _compute_gated_fusion, mutates_args=()).register_fake
def _gated_fusion_fake(a: Tensor, b: Tensor, gate_weight_CG: Tensor, gate_bias_C: Tensor) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _compute_modality_fusion(
    features_BMC: Tensor, query_C: Tensor, presence_BM: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    scores_BM = (features_BMC @ query_C) * (features_BMC.shape[-1] ** -0.5 / temperature)
    weights_BM = scores_BM.masked_fill(~presence_BM, torch.finfo(scores_BM.dtype).min).softmax(-1)
    # a row in which nothing is present would otherwise share its weight out evenly
    weights_BM = weights_BM * presence_BM.to(weights_BM.dtype)
    return (weights_BM[:, :, None] * features_BMC).sum(1), weights_BM


@torch.library.custom_op("metagen::modality_fusion", _compute_modality_fusion, mutates_args=()).register_fake
def _modality_fusion_fake(
    features_BMC: Tensor, query_C: Tensor, presence_BM: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    batch, modalities, channels = features_BMC.shape
    return features_BMC.new_empty((batch, channels)), features_BMC.new_empty((batch, modalities))


_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, the wrappers below call torch's own operators instead of custom ops.

    A model run or exported like this is what a user would have without this project: the baseline of benchmarks.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def attention(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
) -> Tensor:
    """softmax(scale q k^T + bias) v (Vaswani et al. 2017), for MHA, GQA (K divides H) and MQA (K = 1).

    Args:
        bias: added to the scores; broadcasts to [B, H, T, S].
        scale: usually D ** -0.5; a temperature divides it.
        causal: query t sees keys s <= t.
        window: when positive, query t sees only keys s > t - window.

    Returns:
        [B, H, T, D].
    """
    if _plain.get() and not window:
        grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
        return functional.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, bias, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    result: Tensor = torch.ops.metagen.attention(q_BHTD, k_BKSD, v_BKSD, bias, scale, causal, window)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over a key/value cache of fixed capacity S, of which row b holds `start_B[b]` (int64) tokens.

    New keys and values are written at [start, start + T), which must lie below S; query t of row b sees slots
    s <= start_B[b] + t, so whatever lies beyond (padding, stale data) has no influence.

    Returns:
        attended [B, H, T, D], and the updated caches [B, K, S, D].
    """
    run = _compute_cached_attention if _plain.get() else torch.ops.metagen.cached_attention
    out, k, v = run(q_BHTD, k_BKTD, v_BKTD, past_k_BKSD, past_v_BKSD, start_B, scale)
    return out, k, v


def gated_linear(x: Tensor, gate_weight_FC: Tensor, up_weight_FC: Tensor, *, activation: GateActivation) -> Tensor:
    """act(x Wg^T) * (x Wu^T): SwiGLU with silu, GEGLU with gelu (Shazeer 2020). [..., C] -> [..., F]."""
    run = _compute_gated_linear if _plain.get() else torch.ops.metagen.gated_linear
    result: Tensor = run(x, gate_weight_FC, up_weight_FC, activation)
    return result


def gated_fusion(a: Tensor, b: Tensor, gate_weight_CG: Tensor, gate_bias_C: Tensor) -> Tensor:
    """g a + (1 - g) b with g = sigmoid([a; b] W^T + bias) (Arevalo et al. 2017). a, b [..., C]; G = 2C."""
    run = _compute_gated_fusion if _plain.get() else torch.ops.metagen.gated_fusion
    result: Tensor = run(a, b, gate_weight_CG, gate_bias_C)
    return result


def modality_fusion(
    features_BMC: Tensor, query_C: Tensor, presence_BM: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Attention-weighted sum over the modalities that are present.

    weights = softmax over present m of <features_m, query> / (sqrt(C) temperature). A missing modality has weight
    zero whatever its features hold (as long as they are finite); a row with nothing present gives zeros, never NaN.

    Returns:
        fused [B, C] and weights [B, M].
    """
    run = _compute_modality_fusion if _plain.get() else torch.ops.metagen.modality_fusion
    fused, weights = run(features_BMC, query_C, presence_BM, temperature)
    return fused, weights
