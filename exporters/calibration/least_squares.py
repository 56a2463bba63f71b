"""The range that loses least: of all ranges [-T, T] the one whose int8 steps are nearest to the values that were seen.

    error(T) = sum over |x| of (|x| - min(round(|x| / s), 127) s)^2,   s = T / 127

A wide range rounds everything coarsely, a narrow one cuts the loud values off; the sum of both errors has its least
between. Values are kept as a histogram of |x| whose bins double when something louder comes. Mean-square calibration,
as in Banner et al. 2019 (arXiv:1810.05723), on the data instead of on a fitted distribution.

Measured on published models with convolutions (benchmarks/RESULTS.md): the largest error of a detector halves, and a
captcha reader reads all of what "max" reads seven eighths of.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from exporters.passes.int8.ranges import Range

_BINS = 4096
_LEVELS = 127
#: T as shares of the largest value: 0.04 to 1 in steps of 5 %.
_SHARES = 1.05 ** -np.arange(0, 66)


class LeastSquares:
    """Collects tensors; `finish` gives each its range."""

    def __init__(self) -> None:
        self.counts: dict[str, np.ndarray] = {}
        self.widths: dict[str, float] = {}  # of a bin
        self.ends: dict[str, tuple[float, float]] = {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Count the values of every array."""
        for name, array in arrays.items():
            low, high = float(array.min()), float(array.max())
            old_low, old_high = self.ends.get(name, (low, high))
            self.ends[name] = (min(low, old_low), max(high, old_high))
            self._widen(name, max(-low, high))
            if width := self.widths[name]:
                bins = np.minimum(np.abs(array.ravel()) / width, _BINS - 1).astype(np.int64)
                self.counts[name] += np.bincount(bins, minlength=_BINS)

    def finish(self) -> dict[str, Range]:
        """The range of every tensor; what was all zero keeps its extremes."""
        found = {}
        for name, (low, high) in self.ends.items():
            limit = self._find_limit(name, max(-low, high))
            found[name] = Range(max(low, -limit), min(high, limit))
        return found

    def _widen(self, name: str, largest: float) -> None:
        """Make the bins reach `largest`: two become one as often as it takes."""
        counts = self.counts.setdefault(name, np.zeros(_BINS, np.int64))
        width = self.widths.setdefault(name, 0.0)
        if not width:
            self.widths[name] = largest / _BINS
            return
        while width * _BINS < largest:
            counts[: _BINS // 2] = counts[::2] + counts[1::2]
            counts[_BINS // 2 :] = 0
            width *= 2
        self.widths[name] = width

    def _find_limit(self, name: str, largest: float) -> float:
        middles = (np.arange(_BINS) + 0.5) * self.widths[name]
        counts = self.counts[name]
        seen = counts > 0
        if not seen.any():
            return largest
        middles, counts = middles[seen], counts[seen]
        limits = largest * _SHARES
        steps = limits[:, None] / _LEVELS
        rounded = np.minimum(np.rint(middles / steps), _LEVELS) * steps
        return float(limits[np.argmin((np.square(rounded - middles) * counts).sum(axis=1))])
