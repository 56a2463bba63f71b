"""The range of least squares: near the best there is, in any order of the data, and better than the extremes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exporters.calibration.least_squares import LeastSquares
from exporters.passes.int8.ranges import Range


def collect(*arrays: np.ndarray) -> Range:
    collector = LeastSquares()
    for array in arrays:
        collector.add({"x": array})
    return collector.finish()["x"]


def measure_error(values: np.ndarray, limit: float) -> float:
    step = limit / 127
    return float(np.mean(np.square(np.clip(np.rint(values / step), -127, 127) * step - values)))


def draw(kind: str) -> Any:
    rng = np.random.default_rng(2)
    if kind == "normal":
        return rng.standard_normal(200_000)
    if kind == "activation":  # x sigmoid(x): most of it small, a long tail on one side
        x = rng.standard_t(4, 200_000)
        return x / (1 + np.exp(-x))
    return rng.uniform(-3, 3, 200_000)


@pytest.mark.parametrize("kind", ["normal", "activation", "uniform"])
def test_no_other_range_is_much_better(kind: str) -> None:
    values = draw(kind).astype(np.float32)
    span = collect(*values.reshape(8, -1))
    limit, largest = max(-span.low, span.high), float(np.abs(values).max())
    best = min(measure_error(values, largest * share) for share in np.linspace(0.02, 1, 200))
    assert measure_error(values, limit) < 1.05 * best
    assert (limit < largest) == (kind != "uniform")
    assert measure_error(values, largest) > (1.2 if kind != "uniform" else 0.99) * best


def test_a_normal_distribution_is_cut_at_four_deviations() -> None:
    assert 3.6 < collect(draw("normal")).high < 4.5  # Banner et al., table 1: 3.9 for 8 bits


def test_the_order_does_not_matter() -> None:
    quiet, loud = draw("normal") / 50, draw("activation")
    first, second = collect(quiet, loud), collect(loud, quiet)
    assert first.high == pytest.approx(second.high, rel=0.06)  # a step of the search


def test_one_that_is_louder_than_any_is_kept_where_it_carries_weight() -> None:
    values = np.full(10_000, 0.01, np.float32)
    values[0] = 1000
    assert collect(values).high == 1000


def test_what_has_one_sign_keeps_its_zero_and_nothing_stays_nothing() -> None:
    assert collect(np.abs(draw("normal"))).low > 0
    assert collect(np.zeros(10, np.float32), np.zeros(3, np.float32)) == Range(0.0, 0.0)
    assert collect(np.zeros(10, np.float32), np.ones(10, np.float32)).high == 1
