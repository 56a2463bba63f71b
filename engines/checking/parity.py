"""Every stage of a bundle against its golden data: the portable graph, each typed graph, each engine that runs here.

    golden.npz --feed--> stage --outputs--> gates --> measure --> judge --> rows
                                            names and their order, dtype, shape, NaN and infinity
    held_out.npz --> the same of lower precisions, on samples of a user's file that calibrated nothing (`held_out`)
    evaluation.npz --feed--> stage --> top-1, beside that of the fp32 graph
    an engine of fixed sizes is compared with the one of all sizes, which is compared with the golden data

Polygraphy runs the stages: one runner each, one activation. A stage that cannot run on this machine is
listed with its reason; a stage that runs and breaks is a failure. Nothing is printed here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engines.backends import load_backend
from engines.checking.compare import (
    Array,
    StageName,
    fail_output,
)
from engines.checking.culprit import find_divergence
from engines.checking.held_out import judge_held_out
from engines.checking.judge import judge_metric, judge_outputs, measure_top1
from engines.checking.reference import (
    HeldOut,
    read_evaluation,
    read_golden,
    read_held_out,
    resize_feed,
    split_batches,
)
from engines.checking.stages import (
    Stage,
    ask_general,
    find_obstacle,
    list_refusals,
    list_stages,
    load_runner,
    restore_interface,
    run_feeds,
)
from engines.onnx_files.read import require_listed_weights
from specs.bundle import Graph, Manifest
from specs.bundle.files import read_manifest, verify_files, write_manifest
from specs.errors import BuildError, GraphError, MetagenError, PreflightError
from specs.progress import Progress, ignore_progress
from specs.report import Divergence, MetricRow, ParityReport, ParityRow
from specs.system.disk import translate_os_errors

REPORT_NAME = "reports/parity.json"


@dataclass
class _Findings:
    """What the report is made of, while it grows."""

    rows: list[ParityRow] = field(default_factory=list)
    metrics: list[MetricRow] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    divergences: dict[str, Divergence] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def check_bundle(
    folder: Path, *, backends: tuple[str, ...] | None = None, progress: Progress = ignore_progress
) -> ParityReport:
    """Run and compare every stage, or those of `backends`.

    Raises:
        BundleError: a file is damaged, or golden data does not fit its graph. BuildError: an unknown backend.
        MissingDependency: nothing can be compared without Polygraphy and ONNX Runtime.
    """
    manifest = read_manifest(folder)
    for name in backends or ():
        load_backend(name)
    progress("reading every file", None)
    verify_files(folder, manifest)
    stages = [
        stage
        for graph in manifest.graphs
        for stage in list_stages(graph)
        if backends is None or stage.where.backend in backends or _is_metric_reference(stage)
    ]
    findings = _Findings()
    references = _read_references(folder, manifest)
    for index, stage in enumerate(stages):
        progress(f"checking {stage.where.stage} on {stage.where.backend}", index / len(stages))
        reason = find_obstacle(stage, findings.versions)
        if reason:
            findings.not_run[stage.where.stage] = reason
        else:
            _check_stage(folder, manifest, stage, findings, references)
    progress("compared", 1.0)
    return ParityReport(
        bundle=manifest.name,
        rows=tuple(findings.rows),
        metrics=tuple(findings.metrics),
        not_run=findings.not_run,
        divergences=findings.divergences,
        versions=findings.versions,
        reduced_golden={graph.name: graph.reduced_golden for graph in manifest.graphs if graph.reduced_golden},
        no_noise_floor={graph.name: graph.no_noise_floor for graph in manifest.graphs if graph.no_noise_floor},
    )


def _read_references(folder: Path, manifest: Manifest) -> dict[str, float]:
    """The fp32 metrics that an earlier check recorded (the export's own, at least): a Jetson cannot measure them.

    The report is one of the verified files; a value measured in this check replaces the recorded one.
    """
    if REPORT_NAME not in manifest.files:
        return {}
    try:
        report = ParityReport.from_json((folder / REPORT_NAME).read_text(encoding="utf-8"))
        return {metric.graph: float(metric.reference) for metric in report.metrics}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # of another version of this tool


def write_report(folder: Path, report: ParityReport) -> bool:
    """Keep the report in the bundle; False, and nothing done, when it is not ours to write. Raises OutputError."""
    if not os.access(folder, os.W_OK):
        return False
    with translate_os_errors(folder / REPORT_NAME):
        write_manifest(folder, read_manifest(folder), {REPORT_NAME: report.to_json() + "\n"})
    return True


def _is_metric_reference(stage: Stage) -> bool:
    """Of a graph with labelled data the portable form always runs: what the others lose is counted from it."""
    return stage.graph.evaluation is not None and stage.where.stage == stage.graph.file


def _check_stage(
    folder: Path, manifest: Manifest, stage: Stage, findings: _Findings, references: dict[str, float]
) -> None:
    graph, where = stage.graph, stage.where
    if where.stage.endswith(".onnx"):
        require_listed_weights(folder, manifest, where.stage)
    feed, golden = read_golden(folder, graph)
    fixed = stage.engine is not None and bool(stage.engine.sizes)
    held = HeldOut() if fixed else read_held_out(folder, graph, stage.target, where.precision)
    evaluation = None if fixed else read_evaluation(folder, graph)
    batches = list(split_batches(evaluation[0], graph, manifest)) if evaluation else []
    try:
        if fixed:
            feed = resize_feed(feed, graph, stage.engine.sizes if stage.engine else {})
            golden = ask_general(folder, manifest, stage, feed)
        results = run_feeds(load_runner(folder, manifest, stage), [feed, *held.feeds, *batches])
    except BuildError as error:  # an operator that this backend does not implement
        findings.not_run[where.stage] = _join(error)
        return
    except (GraphError, PreflightError) as error:
        findings.rows += [fail_output(where, t.name, f"does not load: {_join(error)}") for t in graph.outputs]
        return
    except list_refusals() as error:
        text = " ".join(str(error).split())
        findings.rows += [fail_output(where, t.name, f"does not run: {text}") for t in graph.outputs]
        return
    if not where.stage.endswith(".onnx"):
        results = [restore_interface(graph, outputs) for outputs in results]
    count = 1 + len(held.feeds)
    rows = _judge(where, graph, results[:count], [golden, *held.answers], held, manifest.parity)
    findings.rows += rows
    failed = next((row for row in rows if not row.passed), None)
    compared = failed is not None and failed.difference.reference_rms > 0  # not stopped at a gate before
    if failed and compared and where.stage.endswith(".onnx") and where.stage != graph.file:
        found = find_divergence(folder / graph.file, folder / where.stage, feed, limit=failed.limit_relative)
        if found is not None:
            findings.divergences[where.stage] = found
    if evaluation is not None:
        value = measure_top1([r[graph.outputs[0].name] for r in results[count:]], evaluation[1])
        if where.stage == graph.file:
            references[graph.name] = value
        if graph.name in references:
            reference = references[graph.name]
            findings.metrics.append(judge_metric(where, value, reference, len(evaluation[1]), manifest.parity))
        else:
            findings.not_run[f"{where.stage} (top1)"] = (
                f"{graph.file} did not run here, and no earlier check recorded its fp32 value"
            )


def _judge(
    where: StageName,
    graph: Graph,
    results: Sequence[Mapping[str, Array]],
    references: Sequence[Mapping[str, Array]],
    held: HeldOut,
    parity: Mapping[str, float],
) -> list[ParityRow]:
    """The golden sample alone, or with those that were held out beside it."""
    if held.feeds and all(list(result) == [tensor.name for tensor in graph.outputs] for result in results):
        return judge_held_out(where, graph, results, references, held.rounding)
    return judge_outputs(where, graph, results[0], references[0], parity)


def _join(error: MetagenError) -> str:
    return f"{error.problem}: {error.got}" if error.got else error.problem
