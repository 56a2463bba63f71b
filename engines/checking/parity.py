"""Every stage of a bundle against its golden data: the portable graph, each typed graph, each engine that runs here.

    golden.npz --feed--> stage --outputs--> gates --> measure --> judge --> rows
                                            names and their order, dtype, shape, NaN and infinity
    held_out.npz --> the same of int8, on samples of a user's file that calibrated nothing (`held_out`)
    evaluation.npz --feed--> stage --> top-1, beside that of the fp32 graph
    an engine of fixed sizes is compared with the one of all sizes, which is compared with the golden data

Polygraphy runs the stages: one runner each, one activation. A stage that cannot run on this machine is
listed with its reason; a stage that runs and breaks is a failure. Nothing is printed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends import load_backend
from engines.backends.onnxruntime import find_version, list_exceptions
from engines.checking.compare import (
    Array,
    StageName,
    compute_logits,
    fail_output,
    hide_torch,
    judge_difference,
    measure_difference,
    quiet_polygraphy,
)
from engines.checking.culprit import find_divergence
from engines.checking.held_out import judge_held_out
from engines.checking.reference import (
    HeldOut,
    read_evaluation,
    read_golden,
    read_held_out,
    resize_feed,
    split_batches,
)
from engines.onnx_files.read import require_listed_weights
from engines.plugins import locate_files
from specs.bundle import EngineFile, Graph, Manifest
from specs.bundle.files import read_manifest, verify_files, write_manifest
from specs.errors import BuildError, GraphError, MetagenError, PreflightError
from specs.progress import Progress, ignore_progress
from specs.report import Divergence, MetricRow, ParityReport, ParityRow
from specs.system.disk import translate_os_errors
from specs.tolerance import PROBABILITY_NOISE, find_tolerance

REPORT_NAME = "reports/parity.json"
_ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One file to run: `where.stage` is its path in the bundle."""

    graph: Graph
    where: StageName
    target: str = ""
    capability: str = ""
    engine: EngineFile | None = None


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
        for stage in _list_stages(graph)
        if backends is None or stage.where.backend in backends or _is_metric_reference(stage)
    ]
    findings = _Findings()
    references = _read_references(folder, manifest)
    for index, stage in enumerate(stages):
        progress(f"checking {stage.where.stage} on {stage.where.backend}", index / len(stages))
        reason = _find_obstacle(stage, findings)
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


def _list_stages(graph: Graph) -> Iterable[_Stage]:
    def name(file: str, backend: str, precision: str) -> StageName:
        return StageName(graph=graph.name, stage=file, backend=backend, precision=precision)

    yield _Stage(graph=graph, where=name(graph.file, _ONNXRUNTIME, graph.precision))
    for typed in graph.typed:
        yield _Stage(graph=graph, where=name(typed.file, _ONNXRUNTIME, typed.precision), target=typed.target)
    for engine in graph.engines:
        where = name(engine.file, engine.backend, engine.precision)
        yield _Stage(
            graph=graph, where=where, target=engine.target, capability=engine.compute_capability, engine=engine
        )


def _is_metric_reference(stage: _Stage) -> bool:
    """Of a graph with labelled data the portable form always runs: what the others lose is counted from it."""
    return stage.graph.evaluation is not None and stage.where.stage == stage.graph.file


def _find_obstacle(stage: _Stage, findings: _Findings) -> str:
    """Why this machine cannot run a stage, "" when it can."""
    available = load_backend(stage.where.backend).probe()
    if available.version:
        findings.versions[stage.where.backend] = available.version
    if not available.can_run:
        return f"{stage.where.backend}: {available.reason}"
    if stage.capability and f"(SM {stage.capability})" not in available.device:
        return f"{stage.where.backend}: the engine is for compute capability {stage.capability}, not {available.device}"
    return ""


def _check_stage(
    folder: Path, manifest: Manifest, stage: _Stage, findings: _Findings, references: dict[str, float]
) -> None:
    graph, where = stage.graph, stage.where
    if where.stage.endswith(".onnx"):
        require_listed_weights(folder, manifest, where.stage)
    feed, golden = read_golden(folder, graph)
    fixed = stage.engine is not None and bool(stage.engine.sizes)
    held = read_held_out(folder, graph, stage.target) if where.precision == "int8" and not fixed else HeldOut()
    evaluation = None if fixed else read_evaluation(folder, graph)
    batches = list(split_batches(evaluation[0], graph, manifest)) if evaluation else []
    try:
        if fixed:
            feed = resize_feed(feed, graph, stage.engine.sizes if stage.engine else {})
            golden = _ask_general(folder, manifest, stage, feed)
        results = _run(_load_runner(folder, manifest, stage), [feed, *held.feeds, *batches])
    except BuildError as error:  # an operator that this backend does not implement
        findings.not_run[where.stage] = _join(error)
        return
    except (GraphError, PreflightError) as error:
        findings.rows += [fail_output(where, t.name, f"does not load: {_join(error)}") for t in graph.outputs]
        return
    except _list_refusals() as error:
        text = " ".join(str(error).split())
        findings.rows += [fail_output(where, t.name, f"does not run: {text}") for t in graph.outputs]
        return
    if not where.stage.endswith(".onnx"):
        results = [_restore_interface(graph, outputs) for outputs in results]
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
            findings.metrics.append(_judge_metric(where, value, reference, len(evaluation[1]), manifest.parity))
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


def _load_runner(folder: Path, manifest: Manifest, stage: _Stage) -> Any:
    plugins = locate_files(manifest, stage.engine) if stage.engine else ()
    return load_backend(stage.where.backend).load(folder / stage.where.stage, [folder / file for file in plugins])


def _ask_general(folder: Path, manifest: Manifest, stage: _Stage, feed: Mapping[str, Array]) -> dict[str, Array]:
    """What the engine of all sizes says, which the golden data itself judges. Raises BuildError: there is none."""
    kind = (stage.engine.target, stage.engine.backend, stage.engine.precision) if stage.engine else ()
    for engine in stage.graph.engines:
        if not engine.sizes and (engine.target, engine.backend, engine.precision) == kind:
            where = replace(stage.where, stage=engine.file)
            general = replace(stage, where=where, engine=engine)
            return _restore_interface(stage.graph, _run(_load_runner(folder, manifest, general), [feed])[0])
    raise BuildError(
        "the bundle has no engine of all sizes to compare this one with",
        fix="build it too, without --fixed: metagen-deploy build BUNDLE",
    )


def _run(runner: Any, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """One activation of one Polygraphy runner over all feeds."""
    with quiet_polygraphy(), hide_torch():
        from polygraphy.comparator import Comparator

        results = Comparator.run([runner], data_loader=list(feeds))
        return [{name: np.asarray(result[name]) for name in result} for result in results[0][1]]


def import_runtimes() -> None:
    """What every check imports when it comes to it, now. Raises MissingDependency."""
    with quiet_polygraphy():
        from polygraphy.comparator import Comparator  # noqa: F401
    if load_backend(_ONNXRUNTIME).probe().can_run:
        import onnxruntime  # noqa: F401


def _list_refusals() -> tuple[type[Exception], ...]:
    """What a runner raises when a stage does not run; ONNX Runtime's own, where it is installed."""
    with quiet_polygraphy():
        from polygraphy.exception import PolygraphyException

    return (PolygraphyException, *(list_exceptions() if find_version() else ()))


def _restore_interface(graph: Graph, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """An engine's outputs as the runtime hands them over: by name in the manifest's order, and int64 where it says so.

    TensorRT 8.6 lists outputs as its optimiser left them, and has no int64: its engines give int32 there.
    """
    listed = {tensor.name: tensor.dtype for tensor in graph.outputs}
    ordered = [*(name for name in listed if name in outputs), *(name for name in outputs if name not in listed)]
    return {
        name: outputs[name].astype(np.int64)
        if outputs[name].dtype == np.int32 and listed.get(name) == "int64"
        else outputs[name]
        for name in ordered
    }


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


def _judge_metric(
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


def _join(error: MetagenError) -> str:
    return f"{error.problem}: {error.got}" if error.got else error.problem
