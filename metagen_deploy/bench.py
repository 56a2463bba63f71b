"""Times a bundle on this machine, and what a user would have picked instead, in turn in one process.

Every round times each contender once, so that a machine that drifts drifts for all. Ratios are what to quote.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.backends.onnxruntime import make_session
from engines.checking.reference import read_golden
from engines.runtime import load
from specs.bundle import SPEC_NAME, Graph, Manifest
from specs.bundle.files import read_manifest, verify_files
from specs.errors import BundleError, translate_import_error
from specs.progress import Progress
from specs.report import LatencyReport, LatencyRow

if TYPE_CHECKING:
    from exporters.baselines import Baseline

Runner = Callable[[], object]

_WARMUP_ROUNDS = 5
_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 20, 200, 6.0
#: Threads of ONNX Runtime and OpenMP spin for a while after their work: the next contender waits until they sleep.
_SETTLE_SECONDS = 0.05


def bench_bundle(folder: Path, *, against: str | None, progress: Progress) -> tuple[LatencyReport, ...]:
    """Median latency of every graph at batch 1, beside `against` ("torch", "stock-onnx" or nothing).

    "torch" is the reference model in eager mode; "stock-onnx" is that model through torch.onnx.export and ONNX
    Runtime, both with their defaults, rebuilt from the bundle's own spec.yaml. Of a bundle that was made of an ONNX
    file "stock-onnx" is the file's own graph, as the bundle keeps it, in ONNX Runtime.

    Raises:
        BundleError: `against` has nothing to time for this bundle.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    session = load(folder, verify=False)
    baseline = _make_baseline(folder, manifest, against) if against else None
    reports = []
    for graph in manifest.graphs:
        batch = _find_batch(graph)
        feed = read_single_sample(folder, manifest, graph)
        executable = session.graphs[graph.name]
        contenders: dict[str, Runner] = {f"ours, {executable.label}": functools.partial(executable.run, feed)}
        if baseline and against:
            progress(f"preparing {against} for {graph.name}", None)
            contenders[against] = baseline.make_runner(graph.name, feed)
        progress(f"timing {graph.name}", None)
        size = manifest.dims.get(batch, (1, 1, 1))[0]
        reports.append(_report_latency(manifest, graph, size, measure_in_turn(contenders)))
    return tuple(reports)


def _find_batch(graph: Graph) -> str:
    """The dim that counts rows: a spec's is called `batch`, a user's file may call its own as it likes.

    There it is the first of every input that has dims, and of those alone.
    """
    names = {tensor.shape[0] for tensor in graph.inputs if tensor.shape}
    inner = {size for tensor in graph.inputs for size in tensor.shape[1:]}
    return str(next(iter(names))) if len(names) == 1 and not names & inner else "batch"


def read_single_sample(folder: Path, manifest: Manifest, graph: Graph) -> dict[str, np.ndarray]:
    """The golden inputs, cut to the smallest batch that the bundle allows."""
    arrays, _ = read_golden(folder, graph)
    batch = _find_batch(graph)
    size = manifest.dims.get(batch, (1, 1, 1))[0]
    return {
        tensor.name: np.ascontiguousarray(arrays[tensor.name][:size])
        if tensor.shape and tensor.shape[0] == batch
        else arrays[tensor.name]
        for tensor in graph.inputs
    }


def measure_in_turn(contenders: Mapping[str, Runner]) -> dict[str, list[float]]:
    """Milliseconds of every run, by contender; each round runs each twice and times the second."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        for _ in range(_WARMUP_ROUNDS):
            run()
    started = time.perf_counter()
    for rounds in range(_MAX_ROUNDS):
        if rounds >= _MIN_ROUNDS and time.perf_counter() - started > _SECONDS:
            break
        for name, run in contenders.items():
            time.sleep(_SETTLE_SECONDS)
            run()
            before = time.perf_counter_ns()
            run()
            times[name].append((time.perf_counter_ns() - before) / 1e6)
    return times


def _report_latency(manifest: Manifest, graph: Graph, batch: int, times: Mapping[str, list[float]]) -> LatencyReport:
    rows = []
    for name, milliseconds in times.items():
        p10, median, p90 = np.percentile(milliseconds, (10, 50, 90))
        rows.append(LatencyRow(name=name, median_ms=median, p10_ms=p10, p90_ms=p90, runs=len(milliseconds)))
    return LatencyReport(
        bundle=f"{manifest.name} / {graph.name}",
        machine=f"{platform.machine()}, {_count_cores()} cores",
        versions=manifest.created_by,
        batch=batch,
        rows=tuple(rows),
    )


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_baseline(folder: Path, manifest: Manifest, against: str) -> Baseline | _OwnFile:
    spec = folder / SPEC_NAME
    if not spec.is_file():
        if against == "stock-onnx":
            return _OwnFile(folder, manifest)
        raise BundleError(
            f"{against} has no model to time: this bundle was made of an ONNX file, not of a spec",
            where=str(folder),
            fix="time the file itself in ONNX Runtime: --against stock-onnx",
        )
    try:
        from exporters.baselines import Baseline
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for=f"bench --against {against}") from error
    return Baseline(against, spec)


class _OwnFile:
    """A user's ONNX file in ONNX Runtime with its defaults: node for node what the bundle keeps as its truth."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    def make_runner(self, graph: str, feed: Mapping[str, np.ndarray]) -> Runner:
        """A call that runs the file once on `feed`."""
        session = make_session(self.folder / self.manifest.graph(graph).file, spare_memory=False)
        return lambda: session.run(None, dict(feed))
