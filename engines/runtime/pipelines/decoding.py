"""What every decoder's host loop does: choose the next token, and hand one step's cache to the next.

A cache has a capacity of slots that is a power of two and doubles when a row needs more; between doublings a step's
cache goes into the next step as it came out, without a copy on this side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.fields import take_field
from engines.runtime.pipelines.batching import softmax
from specs.errors import ParityError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

_SMALLEST_CACHE = 32  # slots
MOST_LAYERS = 10_000  # a manifest may say any number


class Sampler:
    """Next tokens [B] from logits [B, V]: the likeliest, or with a temperature a seeded draw among the `top_k`.

    Args:
        banned: ids that are never chosen. banned_first: ids that are not chosen by the first call.
    """

    def __init__(
        self,
        temperature: float,
        top_k: int,
        seed: int,
        *,
        banned: Sequence[int] = (),
        banned_first: Sequence[int] = (),
    ) -> None:
        self._temperature, self._top_k = temperature, top_k
        self._random = np.random.default_rng(seed)
        self._banned, self._banned_now = list(banned), [*banned, *banned_first]

    def choose(self, logits_BV: Array) -> Array:
        best = logits_BV.max(axis=1)
        if not np.isfinite(best).all():
            raise ParityError(
                "the decoder's logits are not finite",
                got=f"a largest logit of {best[~np.isfinite(best)][0]}",
                fix="metagen-deploy check BUNDLE names the first tensor that is wrong",
            )
        if self._banned_now:
            logits_BV = logits_BV.copy()
            logits_BV[:, self._banned_now] = -np.inf
            best = logits_BV.max(axis=1)
        self._banned_now = self._banned
        if self._temperature == 0:
            likeliest: Array = logits_BV.argmax(axis=1)
            return likeliest
        scores = (logits_BV.astype(np.float64) - best[:, None]) / self._temperature  # at most 0: cannot overflow
        if 0 < self._top_k < scores.shape[1]:
            bars = np.partition(scores, -self._top_k, axis=1)[:, -self._top_k, None]
            scores = np.where(scores >= bars, scores, -np.inf)
        shares = softmax(scores).cumsum(axis=1)
        draws = self._random.random(len(shares)) * shares[:, -1]
        return np.array([np.searchsorted(row, draw, side="right") for row, draw in zip(shares, draws, strict=True)])


def take_cache_names(config: Mapping[str, Any]) -> list[str]:
    """What a decoder's graphs call a step's keys and values, by `pipeline.num_layers`: `keys_0`, `values_0`, ..."""
    layers = range(take_field(config, "num_layers", int, most=MOST_LAYERS))
    return [f"{kind}_{layer}" for layer in layers for kind in ("keys", "values")]


def get_axis_range(graph: GraphSession, tensor: str, axis: int) -> tuple[int, int | None]:
    """Smallest and largest size of one axis of an input; None when nothing limits it."""
    size = next(t for t in graph.graph.inputs if t.name == tensor).shape[axis]
    if isinstance(size, int):
        return size, size
    low, _, high = graph.dims.get(size, (1, 1, None))
    return low, high


def fit_cache(
    results: Mapping[str, Array], names: Sequence[str], *, slots: int, low: int, high: int
) -> dict[str, Array]:
    """A step's keys and values, `names` [B, K, S, D] of its results, as the next one's past: `past_<name>`.

    Args:
        slots: how many the next step needs.
        low, high: the capacities that its graph takes.
    """
    capacity: int = results[names[0]].shape[2]
    if not max(slots, low) <= capacity <= high:
        power = 1 << max(slots - 1, _SMALLEST_CACHE - 1).bit_length()
        capacity = max(low, min(power, high))
    return {f"past_{name}": _resize_cache(results[name], capacity) for name in names}


def _resize_cache(present_BKSD: Array, slots: int) -> Array:
    """The same tensor with `slots` slots; new ones are zero, cut ones are padding."""
    if present_BKSD.shape[2] == slots:
        return present_BKSD
    batch, heads, held, width = present_BKSD.shape
    past = np.zeros((batch, heads, slots, width), present_BKSD.dtype)
    past[:, :, :held] = present_BKSD[:, :, :slots]
    return past
