"""Times a bundle on this machine, and what a user would have picked instead, in turn in one process.

Every round times each contender once, so that a machine that drifts drifts for all. Ratios are what to quote.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engines.runtime import load
from specs.bundle import Graph, Manifest, read_manifest
from specs.errors import missing_dependency
from specs.report import LatencyReport, LatencyRow

Progress = Callable[[str, "float | None"], None]
Runner = Callable[[], object]

_WARMUP_ROUNDS = 5
_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 20, 1000, 6.0


def bench_bundle(folder: Path, *, against: str | None, progress: Progress) -> tuple[LatencyReport, ...]:
    """Median latency of every graph at batch 1, beside `against` ("torch", "stock-onnx" or nothing).

    "torch" is the reference model in eager mode; "stock-onnx" is that model through torch.onnx.export and ONNX
    Runtime, both with their defaults. Baselines are rebuilt from the bundle's own spec.yaml.
    """
    manifest = read_manifest(folder)
    session = load(folder)
    reports = []
    with _prepare_baselines(folder, against, progress) as baselines:
        for graph in manifest.graphs:
            feed = read_single_sample(folder, manifest, graph)
            runner = session.graphs[graph.name]
            ours: dict[str, Runner] = {runner.label: lambda runner=runner, feed=feed: runner.run(feed)}  # type: ignore[misc]
            contenders = ours | {name: make(graph, feed) for name, make in baselines.items()}
            progress(f"timing {graph.name}", None)
            reports.append(_time_in_turn(manifest, graph, contenders))
    return tuple(reports)


def read_single_sample(folder: Path, manifest: Manifest, graph: Graph) -> dict[str, np.ndarray]:
    """The golden inputs, cut to the smallest batch that the bundle allows."""
    with np.load(folder / graph.golden, allow_pickle=False) as golden:
        arrays = {tensor.name: golden[f"input:{tensor.name}"] for tensor in graph.inputs}
    size = manifest.dims.get("batch", (1, 1, 1))[0]
    return {
        tensor.name: np.ascontiguousarray(arrays[tensor.name][:size])
        if tensor.shape and tensor.shape[0] == "batch"
        else arrays[tensor.name]
        for tensor in graph.inputs
    }


def measure_in_turn(contenders: Mapping[str, Runner]) -> dict[str, list[float]]:
    """Milliseconds of every run, by contender; each round runs each once."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        for _ in range(_WARMUP_ROUNDS):
            run()
    started = time.perf_counter()
    for rounds in range(_MAX_ROUNDS):
        if rounds >= _MIN_ROUNDS and time.perf_counter() - started > _SECONDS:
            break
        for name, run in contenders.items():
            before = time.perf_counter_ns()
            run()
            times[name].append((time.perf_counter_ns() - before) / 1e6)
    return times


def _time_in_turn(manifest: Manifest, graph: Graph, contenders: Mapping[str, Runner]) -> LatencyReport:
    rows = []
    for name, milliseconds in measure_in_turn(contenders).items():
        p10, median, p90 = np.percentile(milliseconds, (10, 50, 90))
        rows.append(LatencyRow(name=name, median_ms=median, p10_ms=p10, p90_ms=p90, runs=len(milliseconds)))
    return LatencyReport(
        bundle=f"{manifest.name} / {graph.name}",
        machine=f"{platform.machine()}, {_count_cores()} cores",
        versions=manifest.created_by,
        batch=manifest.dims.get("batch", (1, 1, 1))[0],
        rows=tuple(rows),
    )


def _count_cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _prepare_baselines(
    folder: Path, against: str | None, progress: Progress
) -> Iterator[dict[str, Callable[[Graph, Mapping[str, np.ndarray]], Runner]]]:
    """Baseline name -> how to make its runner for a graph."""
    if against is None:
        yield {}
        return
    try:
        import torch
    except ImportError:
        raise missing_dependency("torch", extra="export", needed_for=f"bench --against {against}") from None
    from exporters.lower import export_stock
    from specs import ops
    from specs.handlers import get_handler
    from specs.load import load_spec

    spec = load_spec(folder / "spec.yaml")
    modules = {module.name: module for module in get_handler(spec).build(spec)}

    def make_torch(graph: Graph, feed: Mapping[str, np.ndarray]) -> Runner:
        module = modules[graph.name].module
        arguments = tuple(torch.from_numpy(feed[tensor.name]) for tensor in graph.inputs)

        def run() -> object:
            with torch.inference_mode(), ops.plain_torch():
                return module(*arguments)

        return run

    with tempfile.TemporaryDirectory() as scratch:

        def make_stock(graph: Graph, feed: Mapping[str, np.ndarray]) -> Runner:
            import onnxruntime

            progress(f"stock export of {graph.name}", None)
            path = Path(scratch) / f"{graph.name}.onnx"
            export_stock(modules[graph.name], spec.dims, feed, path)
            stock = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            return lambda: stock.run(None, dict(feed))

        yield {"torch eager": make_torch} if against == "torch" else {"stock torch.onnx": make_stock}
