"""A narrower precision that is not faster here comes last: the session takes a graph's first engine that fits.

    engines of one graph, target and backend --run each on the golden inputs--> milliseconds
        int8 0.78, fp16 0.68  =>  fp16, int8    and the report says why
        int8 0.50, fp16 0.68  =>  as they were exported

INT8 is not always faster: TensorRT 8.6 computes the attention of an INT8 network in TF32 (`benchmarks/RESULTS.md`), and
small graphs are bound by the number of kernels. Nothing is deleted; who asks for a precision gets it.

Engines of one size are not compared: the golden inputs do not fit them, and a session takes them by size.

Not run on a GPU by now: the order and the words are tested with given times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from engines.checking.reference import read_golden
from engines.plugins import locate_files
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.preflight import ENGINE_MODULES, Candidate
from specs.bundle import EngineFile, Graph, Manifest
from specs.errors import MetagenError

#: (bundle, manifest, graph, engine) -> milliseconds of one call.
Measure = Callable[[Path, Manifest, Graph, EngineFile], float]

_WARM_UP, _CALLS = 5, 30
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}


def measure_latency(folder: Path, manifest: Manifest, graph: Graph, engine: EngineFile) -> float:
    """Median milliseconds of one call with the golden inputs, copies included. Raises MetagenError."""
    plugins = locate_files(manifest, engine)
    candidate = Candidate(file=engine.file, backend=engine.backend, precision=engine.precision, plugins=plugins)
    opened = TensorRTEngine(folder / engine.file, graph, candidate, plugins=[folder / name for name in plugins])
    try:
        feed, _ = read_golden(folder, graph)
        names, times = [tensor.name for tensor in graph.outputs], []
        for index in range(_WARM_UP + _CALLS):
            start = time.perf_counter()
            opened.execute(names, feed)
            if index >= _WARM_UP:
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)
    finally:
        opened.close()


def rank_engines(
    folder: Path, manifest: Manifest, files: Iterable[str], *, measure: Measure = measure_latency
) -> tuple[Manifest, dict[str, str]]:
    """The manifest with each graph's engines in the order to take them, and a remark per engine file that fell back.

    Args:
        files: the engines that were built just now; graphs without one of them are left as they are.
    """
    built, remarks, graphs = set(files), dict[str, str](), []
    for graph in manifest.graphs:
        order: list[EngineFile] = []
        general = [engine for engine in graph.engines if not engine.sizes]
        for _, group in groupby(sorted(general, key=_name_rivals), key=_name_rivals):
            rivals = sorted(group, key=graph.engines.index)
            if len(rivals) > 1 and any(engine.file in built for engine in rivals):
                rivals = _order_rivals(folder, manifest, graph, rivals, measure, remarks)
            order += rivals
        graphs.append(replace(graph, engines=(*order, *(engine for engine in graph.engines if engine.sizes))))
    return replace(manifest, graphs=tuple(graphs)), remarks


def _name_rivals(engine: EngineFile) -> tuple[str, str]:
    return engine.target, engine.backend


def _order_rivals(
    folder: Path, manifest: Manifest, graph: Graph, rivals: list[EngineFile], measure: Measure, remarks: dict[str, str]
) -> list[EngineFile]:
    if any(engine.backend not in ENGINE_MODULES for engine in rivals):
        return rivals
    try:
        times = {engine.file: measure(folder, manifest, graph, engine) for engine in rivals}
    except MetagenError as error:
        remarks[rivals[0].file] = f"precisions were not compared for speed: {error.problem}"
        return rivals
    kept, behind = [], []
    for engine in rivals:
        wider = [one for one in rivals if _BITS[one.precision] > _BITS[engine.precision]]
        best = min(wider, key=lambda one: times[one.file], default=None)
        if best is None or times[engine.file] < times[best.file]:
            kept.append(engine)
            continue
        behind.append(engine)
        remarks[engine.file] = (
            f"{engine.precision} takes {times[engine.file]:.3g} ms where {best.precision} takes {times[best.file]:.3g}"
            f" (golden inputs, copies included): a session takes {best.precision} unless it asks for {engine.precision}"
        )
    return [*kept, *behind]
