"""Outputs of one run against their reference: the gates, then the tolerance; and what a metric may lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from engines.checking.compare import (
    Array,
    StageName,
    compute_logits,
    fail_output,
    judge_difference,
    measure_difference,
)
from specs.bundle import Graph
from specs.report import MetricRow, ParityRow
from specs.tolerance import PROBABILITY_NOISE, find_tolerance


def judge_outputs(
    where: StageName,
    graph: Graph,
    outputs: Mapping[str, Array],
    golden: Mapping[str, Array],
    parity: Mapping[str, float],
) -> list[ParityRow]:
    """The gates, then the tolerance, for every output of one run."""
    expected = [tensor.name for tensor in graph.outputs]
    if list(outputs) != expected:
        reason = f"the outputs are {', '.join(outputs)}, the manifest has {', '.join(expected)}"
        return [fail_output(where, name, reason) for name in expected]
    rows = []
    for tensor in graph.outputs:
        value, reference = outputs[tensor.name], golden[tensor.name]
        if value.dtype.name != tensor.dtype:
            rows.append(fail_output(where, tensor.name, f"dtype {value.dtype.name}, the manifest has {tensor.dtype}"))
        elif reference.dtype.kind not in "fiubc" and reference.dtype.kind != value.dtype.kind:
            rows.append(fail_output(where, tensor.name, f"the golden data is of type {reference.dtype.name}"))
        elif value.shape != reference.shape:
            rows.append(fail_output(where, tensor.name, f"shape {value.shape}, the golden data has {reference.shape}"))
        else:
            row = judge_difference(
                where,
                measure_difference(tensor.name, value, reference),
                exact=value.dtype.kind not in "fc",
                floor=graph.noise_floor.get(tensor.name),
                parity=parity,
            )
            if not row.passed and tensor.name in graph.probabilities and not parity:
                row = _judge_probability(where, row, value, reference)
            rows.append(row)
    return rows


def _judge_probability(where: StageName, row: ParityRow, value: Array, reference: Array) -> ParityRow:
    """`row` again, which failed, as what a Sigmoid gave: see `specs.tolerance`."""
    if row.difference.non_finite:
        return row
    if row.difference.max_abs <= PROBABILITY_NOISE:
        return replace(row, limit_relative=PROBABILITY_NOISE / row.difference.reference_rms, passed=True, reason="")
    logits = [compute_logits(array, where.precision) for array in (value, reference)]
    difference = measure_difference(f"{row.difference.name}, its logit", *logits)
    return judge_difference(where, difference, exact=False, floor=None, parity={})


def measure_top1(logits: Sequence[Array], labels: Array) -> float:
    """Share of samples whose largest logit is the label; rows beyond the labels are filling."""
    predicted = np.concatenate([batch.argmax(axis=-1) for batch in logits])[: len(labels)]
    return float(np.mean(predicted == labels))


def judge_metric(
    where: StageName, value: float, reference: float, samples: int, parity: Mapping[str, float]
) -> MetricRow:
    max_loss = find_tolerance(where.precision).top1_loss
    if where.precision != "fp32":  # the spec's limit is what a lower precision may lose
        max_loss = parity.get("top1_max_loss", max_loss)
    return MetricRow(
        graph=where.graph,
        stage=where.stage,
        backend=where.backend,
        precision=where.precision,
        metric="top1",
        value=value,
        reference=reference,
        samples=samples,
        max_loss=max_loss,
        passed=reference - value <= max_loss + 1e-12,
    )
