"""What the plugins of a decode step mean, in numpy: for onnx's reference evaluator, and to judge kernels by.

Computed in float64; a result is rounded once, to the type of what it is made of. `exporters/passes/fuse_step.py` makes
the nodes.

    B batch, H heads, K heads of the cache, G = H / K, S slots, D size of a head
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = NDArray[Any]
_DOMAIN = "metagen.plugin"


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


_GATES = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def step_linear(
    x: Array,
    weights: Sequence[Array],
    *,
    transposed: bool = False,
    norm: Array | None = None,
    epsilon: float = 0.0,
    biases: Sequence[Array] = (),
    residual: Array | None = None,
    gate: str = "none",
) -> tuple[Array, ...]:
    """rms(x) W_i + b_i (+ residual), or act(rms(x) W_0) * (rms(x) W_1).

    Args:
        x: [..., K].
        weights: each [K, N_i], or [N_i, K] where they lie transposed.
        norm: the weight [K] of rms(x) = x / sqrt(mean(x^2) + epsilon) * weight; None: x itself.
        biases: one [N_i] for each weight, or none.
        residual: [..., N_0], with one weight.

    Returns:
        [..., N_i] for each weight, in the type of x; one [..., N] with a gate.
    """
    wide = x.astype(np.float64)
    if norm is not None:
        wide = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + epsilon) * norm.astype(np.float64)
    out = [wide @ (weight.T if transposed else weight).astype(np.float64) for weight in weights]
    if gate != "none":
        out = [_GATES[gate](out[0]) * out[1]]
    if biases:
        out = [y + bias.astype(np.float64) for y, bias in zip(out, biases, strict=True)]
    if residual is not None:
        out = [out[0] + residual.astype(np.float64)]
    return tuple(y.astype(x.dtype) for y in out)


def step_attention(
    q: Array,
    k: Array,
    v: Array,
    past_k: Array,
    past_v: Array,
    start: Array,
    cos: Array | None = None,
    sin: Array | None = None,
    *,
    scale: float,
    groups: int,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Array, Array, Array]:
    """One new token of each row: rotated, written to the cache, and attending to the slots up to its own.

    Args:
        q, k, v: any shapes of B H D, B K D and B K D elements, in this order.
        past_k, past_v: [B, K, S, D].
        start: int64 [B], the slot of the new token; behind the cache: it is not written.
        cos, sin: [B, 1, 1, D/2], or None: q and k are not rotated.
        window: how many slots a token sees, its own among them; 0: all.
        softcap: c of c tanh(score / c); 0: none.

    Returns:
        out in shape and type of q; present_k and present_v in those of the cache.
    """
    B, K, S, D = past_k.shape
    q_BKGD, k_BK1D, v_BK1D = (x.astype(np.float64).reshape(B, K, -1, D) for x in (q, k, v))
    assert q_BKGD.shape[2] == groups and k_BK1D.shape[2] == v_BK1D.shape[2] == 1
    if cos is not None and sin is not None:
        q_BKGD, k_BK1D = (_rotate(x, cos.astype(np.float64), sin.astype(np.float64)) for x in (q_BKGD, k_BK1D))
    slot_S, start_B11 = np.arange(S), start.reshape(B, 1, 1)
    written_B1S1 = (slot_S == start_B11)[..., None]
    present_k = np.where(written_B1S1, k_BK1D.astype(past_k.dtype), past_k)
    present_v = np.where(written_B1S1, v_BK1D.astype(past_v.dtype), past_v)
    scores = scale * q_BKGD @ present_k.astype(np.float64).swapaxes(2, 3)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    seen_B1S = slot_S <= start_B11
    if window:
        seen_B1S &= slot_S > start_B11 - window
    scores = np.where(seen_B1S[:, :, None], scores, np.float64(np.finfo(np.float32).min))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = weights / weights.sum(axis=-1, keepdims=True) @ present_v.astype(np.float64)
    return out.reshape(q.shape).astype(q.dtype), present_k, present_v


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class MetagenStepLinear(OpRun):
    op_domain = _DOMAIN

    def _run(self, x: Array, *inputs: Array, **given: Any) -> tuple[Array, ...]:
        rest = iter(inputs)
        weights = [next(rest) for _ in range(given["weights"])]
        norm = next(rest) if given["norm"] else None
        biases = [next(rest) for _ in weights] if given["bias"] else []
        residual = next(rest) if given["residual"] else None
        assert next(rest, None) is None
        _require_half(given["half"], x, *inputs)
        return step_linear(
            x, weights, transposed=bool(given["transposed"]), norm=norm, epsilon=given["epsilon"], biases=biases,
            residual=residual, gate=given["gate"],
        )  # fmt: skip


class MetagenStepAttention(OpRun):
    op_domain = _DOMAIN

    def _run(self, q: Array, k: Array, v: Array, *inputs: Array, **given: Any) -> tuple[Array, ...]:
        past_k, past_v, start, *tables = inputs
        assert len(tables) == 2 * given["rotary"]
        assert {x.dtype for x in (past_k, past_v, *tables)} == {np.dtype(np.float32)}
        _require_half(given["half"], q, k, v)
        return step_attention(
            q, k, v, past_k, past_v, start, *tables,
            scale=given["scale"], groups=given["groups"], window=given["window"], softcap=given["softcap"],
        )  # fmt: skip


def _require_half(half: int, *arrays: Array) -> None:
    wanted = np.dtype(np.float16 if half else np.float32)
    assert {array.dtype for array in arrays} == {wanted}, "the attribute says another type than the graph"


OPS: list[type[OpRun]] = [MetagenStepLinear, MetagenStepAttention]


def run_reference(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """What a graph with these nodes computes."""
    return list(ReferenceEvaluator(proto, new_ops=OPS).run(None, dict(feed)))
