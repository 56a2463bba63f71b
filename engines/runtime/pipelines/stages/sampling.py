"""How the next token is chosen: the likeliest, or a seeded draw by softmax(logits / temperature) among the `top_k`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.pipelines.stages.batching import softmax
from specs.errors import InputError, ParityError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


@final
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Greedy unless a temperature is given.

    Attributes:
        temperature: 0 takes the likeliest token; above, logits are divided by it and a token is drawn.
        top_k: draw among so many of the likeliest; 0 for all.
        seed: of the draws; the same seed gives the same tokens on the same backend.

    Raises:
        InputError: a value that draws nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = _are(Real, self.temperature) and _are(Integral, self.top_k, self.seed)
        if not numbers or not 0 <= self.temperature < float("inf") or self.top_k < 0 or self.seed < 0:
            raise InputError(
                "these settings generate nothing",
                got=f"temperature {self.temperature}, top_k {self.top_k}, seed {self.seed}",
                allowed="a finite temperature from 0, whole numbers from 0",
                fix="correct these settings",
            )


def _are(kind: type, *values: object) -> bool:
    return all(isinstance(value, kind) for value in values)


@final
class Sampler:
    """Next tokens [B] from logits [B, V], as a `Sampling` says.

    Args:
        banned: ids that are never chosen. banned_first: ids that are not chosen by the first call.
    """

    def __init__(self, sampling: Sampling, *, banned: Sequence[int] = (), banned_first: Sequence[int] = ()) -> None:
        self._temperature, self._top_k = sampling.temperature, sampling.top_k
        self._random = np.random.default_rng(sampling.seed)
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
