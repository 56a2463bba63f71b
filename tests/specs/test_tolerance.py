"""The tolerance table from both sides: what a right engine was measured to do passes, what lies beyond it does not."""

from __future__ import annotations

import pytest

from engines.checking.compare import StageName, judge_difference
from engines.checking.judge import judge_metric
from specs.report import ParityRow, TensorDifference
from specs.tolerance import TOLERANCES, find_tolerance, limit_relative_error

RMS = 2.0  # not 1: an error is judged relative to it
TINY, USUAL, HUGE = 1e-12, 1e-6, 1.0  # noise floors relative to RMS: below any rounding, of a real graph, of a lie


def judge(precision: str, *, relative: float = 0.0, cosine: float = 1.0, floor: float | None = None) -> ParityRow:
    difference = TensorDifference(
        name="y", max_abs=relative * RMS, mean_abs=0.0, cosine=cosine, reference_rms=RMS, non_finite=0
    )
    where = StageName(graph="g", stage="s", backend="onnxruntime", precision=precision)
    own = None if floor is None else floor * RMS
    return judge_difference(where, difference, exact=False, floor=own, parity={})


@pytest.mark.parametrize(
    ("precision", "floor", "passes", "fails"),
    [
        ("fp32", None, 4e-5, 6e-5),
        ("fp32", TINY, 9e-7, 2e-6),
        ("fp32", USUAL, 4.3e-6, 1.5e-5),  # the worst of ONNX Runtime; the least that a tanh GELU does
        ("fp32", HUGE, 9e-4, 2e-3),
        ("fp16", None, 1.9e-2, 2.5e-2),
        ("fp16", TINY, 1.9e-3, 3e-3),
        ("fp16", USUAL, 1.5e-2, 2e-2),
        ("fp16", HUGE, 2.9e-2, 4e-2),
        ("bf16", None, 9e-2, 1.5e-1),
        ("bf16", TINY, 1.9e-2, 3e-2),
        ("bf16", USUAL, 1.2e-1, 1.5e-1),
        ("bf16", HUGE, 1.9e-1, 2.5e-1),
        ("int8", None, 2.9e-1, 3.5e-1),
        ("int8", TINY, 2.9e-1, 3.5e-1),
        ("int8", HUGE, 2.9e-1, 3.5e-1),
    ],
)
def test_the_largest_error(precision: str, floor: float | None, passes: float, fails: float) -> None:
    assert judge(precision, relative=passes, floor=floor).passed
    row = judge(precision, relative=fails, floor=floor)
    assert not row.passed and row.reason.startswith("largest error")


@pytest.mark.parametrize(
    ("precision", "passes", "fails"),
    [
        ("fp32", 1 - 5e-8, 1 - 2e-7),
        ("fp16", 0.99995, 0.9998),
        ("bf16", 0.9995, 0.998),
        ("int8", 0.995, 0.985),
    ],
)
def test_the_direction(precision: str, passes: float, fails: float) -> None:
    assert judge(precision, cosine=passes).passed
    for cosine in (fails, float("nan")):
        row = judge(precision, cosine=cosine)
        assert not row.passed and row.reason.startswith("cosine")


@pytest.mark.parametrize(
    ("precision", "passes", "fails"),
    [("fp32", 0.0, 0.001), ("fp16", 0.005, 0.006), ("bf16", 0.01, 0.011), ("int8", 0.005, 0.006)],
)
def test_the_task(precision: str, passes: float, fails: float) -> None:
    where = StageName(graph="g", stage="s", backend="onnxruntime", precision=precision)
    for loss, passed in ((-0.1, True), (passes, True), (fails, False)):
        assert judge_metric(where, 0.9 - loss, 0.9, 1000, {}).passed == passed
    own = {"top1_max_loss": 0.05}  # of the spec: what a lower precision may lose, and fp32 may not
    assert judge_metric(where, 0.86, 0.9, 1000, own).passed == (precision != "fp32")
    strict = {"top1_max_loss": 0.0}
    assert not judge_metric(where, 0.899, 0.9, 1000, strict).passed


def test_every_row_is_tried_here() -> None:
    assert set(TOLERANCES) == {"fp32", "fp16", "bf16", "int8"}


@pytest.mark.parametrize("rms", [1e-3, 0.5, 1.0, 40.0])
def test_a_limit_is_in_floors_of_the_output_s_own_size(rms: float) -> None:
    """Also of an output that is quiet: its floor is known, and the limit of an unknown one is another."""
    row = find_tolerance("fp32")
    assert row.floor_factor is not None
    share = (row.least + row.most) / 2  # between the two ends, where the floor decides
    limit = limit_relative_error("fp32", floor=share * rms / row.floor_factor, rms=rms)
    assert limit == pytest.approx(share) != row.unknown
    assert limit_relative_error("fp32", floor=2e-5 * rms, rms=rms) == row.most
    assert limit_relative_error("fp32", floor=8.3e-5 * rms, rms=rms) == pytest.approx(2.49e-4)  # three of its floors
    assert limit_relative_error("fp32", floor=1e3 * rms, rms=rms) == row.ceiling
    assert limit_relative_error("fp16", floor=8.3e-5 * rms, rms=rms) == find_tolerance("fp16").most
    assert limit_relative_error("fp32", floor=1e-12 * rms, rms=rms) == row.least
    assert limit_relative_error("fp32", floor=0.0, rms=rms) == row.unknown
