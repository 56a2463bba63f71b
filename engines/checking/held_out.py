"""A graph of lower precision judged on samples that calibrated nothing, all together: see `specs.tolerance`.

    golden sample, held-out samples --> rms error of each, of the rms of all    at most 0.3         in fp16 0.03
                                        cosine of all                           at least 0.99       0.9999
                                        rms and largest error of all            at most what rounding explains, or
                                                                                so small that nothing needs explaining
                                        integers                                equal, but for one in 200

What fails says what to look at besides: in how many rows the largest value stays in its place, or how many answers stay
on their side of 0.5. Whether that is enough for a task is not ours to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from engines.checking.compare import Array, StageName, compute_logits, fail_output, judge_difference, measure_difference
from engines.checking.reference import Rounding
from specs.bundle import Graph
from specs.report import ParityRow
from specs.tolerance import PROBABILITY_NOISE, find_tolerance

Outputs = Sequence[Mapping[str, Array]]


def judge_held_out(
    where: StageName, graph: Graph, results: Outputs, references: Outputs, rounding: Mapping[str, Rounding]
) -> list[ParityRow]:
    """One row an output, of all samples together.

    Args:
        results: of the stage, for each sample; their names are the manifest's.
        references: what the original answers.
        rounding: of the outputs of which it is known.
    """
    rows = []
    for tensor in graph.outputs:
        values = [result[tensor.name] for result in results]
        wanted = [reference[tensor.name] for reference in references]
        if wrong := _find_mismatch(values, wanted, tensor.dtype):
            rows.append(fail_output(where, tensor.name, wrong))
            continue
        if values[0].dtype.kind not in "fc":
            rows.append(_judge_integers(where, tensor.name, values, wanted))
            continue
        row = _judge_floats(where, tensor.name, values, wanted, rounding.get(tensor.name))
        if not row.passed and not row.difference.non_finite and tensor.name in graph.probabilities:
            row = _judge_probabilities(where, row, values, wanted)
        rows.append(row if row.passed else replace(row, reason=row.reason + _describe_task(graph, row, values, wanted)))
    return rows


def _find_mismatch(values: Sequence[Array], wanted: Sequence[Array], dtype: str) -> str:
    for index, (value, reference) in enumerate(zip(values, wanted, strict=True)):
        if value.dtype.name != dtype:
            return f"dtype {value.dtype.name}, the manifest has {dtype}"
        if reference.dtype.kind != value.dtype.kind:
            return f"sample {index} of the original is of type {reference.dtype.name}"
        if value.shape != reference.shape:
            return f"shape {value.shape} on sample {index}, the original has {reference.shape}"
    return ""


def _judge_floats(
    where: StageName, name: str, values: Sequence[Array], wanted: Sequence[Array], rounding: Rounding | None
) -> ParityRow:
    """The row of all samples; `needed_relative` is the rms error of the worst one."""
    limits = find_tolerance(where.precision)
    difference = measure_difference(name, _join(values), _join(wanted))
    row = judge_difference(where, difference, exact=False, floor=None, parity={})
    if difference.non_finite:
        return replace(row, samples=len(values))
    rms = difference.reference_rms or 1.0  # an all-zero reference has no scale
    errors = [_measure_rms(value, reference) / rms for value, reference in zip(values, wanted, strict=True)]
    worst = int(np.argmax(errors))
    largest = difference.max_abs / rms
    allowed = max(limits.least, limits.sure_floors * rounding.largest / rms) if rounding else limits.unknown
    squares = sum(error**2 * value.size for error, value in zip(errors, values, strict=True))
    mean = math.sqrt(squares / max(1, sum(value.size for value in values)))
    reason = ""
    if not errors[worst] <= limits.most:
        reason = (
            f"sample {worst + 1} of {len(values)} is {errors[worst]:.3g} of the rms away, allowed {limits.most:.3g}"
        )
    elif difference.reference_rms and not difference.cosine >= limits.cosine:
        reason = f"cosine {difference.cosine:.6f} over {len(values)} samples, at least {limits.cosine:g} needed"
    elif rounding and mean > max(limits.fine, limits.sure_floors * rounding.rms / rms):
        reason = (
            f"rms error {mean:.3g} of the rms, and rounding to {where.precision} alone makes {rounding.rms / rms:.3g}: "
            "the graph is wrong, report it with the model"
        )
    elif not largest <= allowed:
        explained = (
            "" if rounding is None else f"; rounding to {where.precision} alone makes {rounding.largest / rms:.3g}"
        )
        reason = f"largest error {largest:.3g} of the rms, allowed {allowed:.3g}{explained}"
    return replace(
        row,
        limit_relative=limits.most,
        needed_relative=errors[worst],
        passed=not reason,
        reason=reason,
        samples=len(values),
    )


def _judge_probabilities(
    where: StageName, row: ParityRow, values: Sequence[Array], wanted: Sequence[Array]
) -> ParityRow:
    """`row` again, which failed, as what a Sigmoid gave: a "no" of 1e-6 has no size of its own."""
    if row.difference.max_abs <= PROBABILITY_NOISE:
        return replace(row, needed_relative=0.0, passed=True, reason="")
    got, reference = ([compute_logits(array, where.precision) for array in arrays] for arrays in (values, wanted))
    return _judge_floats(where, f"{row.difference.name}, its logit", got, reference, None)


def _judge_integers(where: StageName, name: str, values: Sequence[Array], wanted: Sequence[Array]) -> ParityRow:
    got, reference = _join(values), _join(wanted)
    difference = measure_difference(name, got, reference)
    row = judge_difference(where, difference, exact=True, floor=None, parity={})
    unequal = int(np.count_nonzero(got != reference))
    allowed = math.floor(find_tolerance(where.precision).top1_loss * got.size)
    reason = "" if unequal <= allowed else f"{unequal} of {got.size} values differ, allowed {allowed}"
    return replace(row, passed=not reason, reason=reason, samples=len(values))


def _describe_task(graph: Graph, row: ParityRow, values: Sequence[Array], wanted: Sequence[Array]) -> str:
    """What became of decisions that such an output may be for."""
    if not all(np.isfinite(value).all() for value in values):
        return ""
    if row.difference.name.partition(", its logit")[0] in graph.probabilities:
        got, reference = _join(values) > 0.5, _join(wanted) > 0.5
        return f" ({np.count_nonzero(got == reference)} of {got.size} answers stay on their side of 0.5)"
    if not wanted[0].ndim or wanted[0].shape[-1] < 2 or not _join(wanted).size:
        return ""
    got, reference = (np.concatenate([a.argmax(axis=-1).reshape(-1) for a in arrays]) for arrays in (values, wanted))
    return (
        f" (along its last axis the largest value stays in its place in {np.count_nonzero(got == reference)} of "
        f"{got.size} rows)"
    )


def _join(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.reshape(-1) for array in arrays])


def _measure_rms(value: Array, reference: Array) -> float:
    if not value.size:
        return 0.0
    return float(np.sqrt(np.mean(np.square(value.astype(np.float64) - reference.astype(np.float64)))))
