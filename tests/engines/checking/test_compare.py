"""A difference is measured, and judged by the limits of its precision and of its graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.checking.compare import StageName, judge_difference, measure_difference
from specs.errors import ParityError
from specs.report import TensorDifference
from specs.tolerance import TOLERANCES, find_tolerance, limit_relative_error

WHERE = StageName(graph="g", stage="s", backend="onnxruntime", precision="fp32")


def make_difference(**changes: float) -> TensorDifference:
    fields = {"max_abs": 1e-3, "mean_abs": 1e-4, "cosine": 0.99995, "reference_rms": 1.0, "non_finite": 0, **changes}
    return TensorDifference(name="y", **fields)  # type: ignore[arg-type]  # ints and floats by name


def test_the_spec_s_limits_replace_those_of_lowered_precisions_and_only_tighten_fp32() -> None:
    half = replace(WHERE, precision="fp16")
    loose, tight = {"cosine": 0.5, "max_abs": 1.0}, {"cosine": 0.99999, "max_abs": 1e-4}
    bad = make_difference(max_abs=0.5, cosine=0.9)
    assert judge_difference(half, bad, exact=False, floor=None, parity=loose).passed
    assert not judge_difference(WHERE, bad, exact=False, floor=None, parity=loose).passed
    good = make_difference()
    assert judge_difference(half, good, exact=False, floor=None, parity={}).passed
    assert not judge_difference(half, good, exact=False, floor=None, parity=tight).passed


def test_a_wrong_direction_and_nan_fail_whatever_else_fits() -> None:
    half = replace(WHERE, precision="fp16")
    for wrong, reason in (
        (make_difference(cosine=0.99), "cosine 0.99"),
        (make_difference(cosine=float("nan")), "cosine nan"),
        (make_difference(max_abs=float("nan")), "largest error nan"),
        (make_difference(max_abs=0.0, cosine=1.0, non_finite=3), "3 elements are NaN or infinite"),
    ):
        row = judge_difference(half, wrong, exact=False, floor=None, parity={})
        assert not row.passed and row.reason.startswith(reason)


def test_a_difference_is_that_of_the_worst_element_of_the_reference_s_scale() -> None:
    reference = np.array([[3e5, -4e5], [0.0, 5e5]], np.float32)  # beyond float16
    value = reference + np.array([[0, 0], [300, 100]], np.float32)
    found = measure_difference("y", value, reference)
    assert (found.max_abs, found.mean_abs, found.non_finite) == (300, 100, 0)
    assert found.reference_rms == pytest.approx(np.sqrt(50e10 / 4))
    assert measure_difference("y", value * np.float32(np.nan), reference).non_finite == 4
    strict = judge_difference(
        replace(WHERE, precision="int8"), found, exact=False, floor=None, parity={"max_abs": 299.0}
    )
    assert not strict.passed, "the spec's max_abs is in the output's own units"


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20, 1e300])
def test_a_difference_is_found_at_any_scale(scale: float) -> None:
    random = np.random.default_rng(0)
    reference = scale * random.standard_normal((3, 5, 7))
    value = reference * (1 + 1e-3 * random.standard_normal(reference.shape))
    found = measure_difference("y", value, reference)
    got, want = value.ravel() / scale, reference.ravel() / scale
    cosine = got @ want / np.sqrt((got @ got) * (want @ want))
    assert found.max_abs / scale == pytest.approx(np.abs(got - want).max(), rel=1e-9)
    assert found.mean_abs / scale == pytest.approx(np.abs(got - want).mean(), rel=1e-5), "Polygraphy's mean is float32"
    assert found.cosine == pytest.approx(cosine, abs=1e-12) and 0.99 < cosine < 1


@pytest.mark.parametrize(
    ("value", "reference", "cosine"),
    [
        ([0, 0], [0, 0], 1.0),
        ([0, 0], [0, 1], 0.0),
        ([2, 0], [0, 0], 0.0),
        ([1, 2], [-1, -2], -1.0),
        ([3, 4], [6, 8], 1.0),
    ],
)
def test_the_cosine_of_zeros_is_defined(value: list[float], reference: list[float], cosine: float) -> None:
    found = measure_difference("y", np.array(value, np.float32), np.array(reference, np.float32))
    assert found.cosine == pytest.approx(cosine, abs=1e-15)


def test_integers_and_booleans_must_be_equal() -> None:
    one_off = measure_difference("y", np.array([10**6, 2, 4]), np.array([10**6, 2, 3]))
    same = measure_difference("y", np.array([True, False]), np.array([True, False]))
    assert not judge_difference(WHERE, one_off, exact=True, floor=None, parity={}).passed
    assert judge_difference(WHERE, same, exact=True, floor=None, parity={}).passed


def test_an_all_zero_reference_has_a_limit_too() -> None:
    zero = np.zeros((2, 3), np.float32)
    for value, passes in ((zero, True), (zero + 1e-3, False)):
        row = judge_difference(WHERE, measure_difference("y", value, zero), exact=False, floor=None, parity={})
        assert row.passed == passes


def test_no_floor_in_a_manifest_opens_the_gate() -> None:
    for precision, row in TOLERANCES.items():
        for floor in (0.0, 1e9, float("nan"), float("inf"), None):
            assert limit_relative_error(precision, floor=floor, rms=1.0) <= max(row.most, row.unknown, row.ceiling)


def test_an_unknown_precision_has_no_tolerance() -> None:
    with pytest.raises(ParityError) as caught:
        find_tolerance("fp17")
    assert str(caught.value) == (
        "no tolerance is known for precision 'fp17'\n  allowed: bf16, fp16, fp32, int8 (did you mean 'fp16'?)\n"
        "  fix:     choose one of these"
    )
