"""Measure how far outputs are from their reference, and judge it. Two functions; neither runs nor prints anything.

measure_difference   Polygraphy's statistics of one tensor, in float64    -> TensorDifference
judge_difference     the limits of specs.tolerance and of the spec        -> ParityRow
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from specs.errors import missing_dependency
from specs.report import ParityRow, TensorDifference
from specs.tolerance import find_tolerance, limit_relative_error

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class StageName:
    """What was run: one graph in one form on one backend."""

    graph: str
    stage: str
    backend: str
    precision: str


@contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Polygraphy logs every comparison; what it finds is in our report."""
    try:
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise missing_dependency("polygraphy", extra="onnxruntime", needed_for="comparing outputs") from None
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield


@contextmanager
def hide_torch() -> Iterator[None]:
    """Polygraphy asks of every array whether it is a torch tensor, and imports torch to find out: 2 s and 200 MB.

    Inside, there is no torch for it, unless the caller has imported torch already.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def measure_difference(name: str, value: Array, reference: Array) -> TensorDifference:
    """Compare two tensors of one shape. A non-finite element makes the errors infinite and the cosine 0."""
    assert value.shape == reference.shape, (name, value.shape, reference.shape)
    got, want = value.astype(np.float64), reference.astype(np.float64)
    scale = find_scale(got, want)
    got /= scale
    want /= scale
    rms = scale * math.sqrt(float(np.mean(np.square(want)))) if want.size else 0.0
    non_finite = int(np.count_nonzero(~np.isfinite(got)))
    if non_finite:
        return TensorDifference(
            name=name, max_abs=math.inf, mean_abs=math.inf, cosine=0.0, reference_rms=rms, non_finite=non_finite
        )
    if not want.size:
        return TensorDifference(name=name, max_abs=0.0, mean_abs=0.0, cosine=1.0, reference_rms=0.0, non_finite=0)
    errors, cosine = _compare_with_polygraphy(name, got, want)
    return TensorDifference(
        name=name,
        max_abs=scale * errors.max_absdiff,
        mean_abs=scale * errors.mean_absdiff,
        cosine=cosine.cosine_similarity,
        reference_rms=rms,
        non_finite=0,
    )


def compute_logits(probability: Array, precision: str) -> Array:
    """log(p / (1 - p)) of p in [0, 1], in float64; what `precision` cannot tell from 0 or 1 is as near as it can be."""
    nothing = find_tolerance(precision).nothing
    clipped = probability.astype(np.float64).clip(nothing, 1 - nothing)
    logits: Array = np.log(clipped / (1 - clipped))
    return logits


def find_scale(*arrays: Array) -> float:
    """A power of two by which these float64 arrays are at most 1: squares and sums of what is left cannot overflow.

    Dividing by it and multiplying with it changes no digit. Polygraphy adds up in float32.
    """
    largest = max(float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0)) for array in arrays)
    return math.ldexp(1.0, min(math.frexp(largest)[1], 1023)) if largest else 1.0


def _compare_with_polygraphy(name: str, got: Array, want: Array) -> tuple[Any, Any]:
    with quiet_polygraphy(), hide_torch(), np.errstate(over="ignore"):  # it divides by every element, of 1e-38 too
        from polygraphy.comparator import CosineSimilarityCompareFunc, IterationResult, SimpleCompareFunc

        run = IterationResult({name: np.atleast_1d(got)}, runner_name="run")
        golden = IterationResult({name: np.atleast_1d(want)}, runner_name="golden")
        errors = SimpleCompareFunc(check_error_stat="max")(run, golden)[name]
        cosine = CosineSimilarityCompareFunc()(run, golden)[name]
    return errors, cosine


def judge_difference(
    where: StageName,
    difference: TensorDifference,
    *,
    exact: bool,
    floor: float | None,
    parity: Mapping[str, float],
) -> ParityRow:
    """Hold one difference against its limits.

    Args:
        exact: an integer or boolean output, which may not differ at all.
        floor: the output's noise floor, None when unknown.
        parity: the spec's own `cosine` and `max_abs`. They replace the table's for lowered precisions; an fp32 graph
            has no reason to be looser than the table, so there they can only tighten.
    """
    rms = difference.reference_rms
    relative = limit_relative_error(where.precision, floor=floor, rms=rms)
    cosine = find_tolerance(where.precision).cosine
    if exact:
        relative, cosine = 0.0, -1.0
    else:
        keeps = where.precision == "fp32"
        if "max_abs" in parity:
            own = parity["max_abs"] / rms if rms else parity["max_abs"]
            relative = min(relative, own) if keeps else own
        if "cosine" in parity:
            cosine = max(cosine, parity["cosine"]) if keeps else parity["cosine"]
    # An all-zero reference has no scale and no direction: the absolute error is held against the limit.
    needed = difference.max_abs / rms if rms else difference.max_abs
    reason = _find_reason(difference, needed, relative, cosine if rms else -1.0)
    return ParityRow(
        graph=where.graph,
        stage=where.stage,
        backend=where.backend,
        precision=where.precision,
        difference=difference,
        limit_relative=relative,
        limit_cosine=cosine,
        needed_relative=needed,
        passed=not reason,
        reason=reason,
    )


def fail_output(where: StageName, name: str, reason: str) -> ParityRow:
    """The row of an output that could not even be compared."""
    row = find_tolerance(where.precision)
    nothing = TensorDifference(
        name=name, max_abs=math.inf, mean_abs=math.inf, cosine=0.0, reference_rms=0.0, non_finite=0
    )
    return ParityRow(
        graph=where.graph,
        stage=where.stage,
        backend=where.backend,
        precision=where.precision,
        difference=nothing,
        limit_relative=row.unknown,
        limit_cosine=row.cosine,
        needed_relative=math.inf,
        passed=False,
        reason=reason,
    )


def _find_reason(difference: TensorDifference, needed: float, relative: float, cosine: float) -> str:
    if difference.non_finite:
        return f"{difference.non_finite} elements are NaN or infinite"
    if not needed <= relative:
        return f"largest error {needed:.3g} of the reference's rms, allowed {relative:.3g}"
    if not difference.cosine >= cosine:
        return f"cosine {difference.cosine:.9f}, at least {cosine:.9f} needed"
    return ""
