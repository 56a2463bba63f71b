"""What there is to check in a bundle, and how each of it runs: one Polygraphy runner, one activation.

A stage is one file: a portable graph, a typed graph or an engine. Nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends import load_backend
from engines.backends.onnxruntime import find_version, list_exceptions
from engines.checking.compare import (
    Array,
    StageName,
    hide_torch,
    quiet_polygraphy,
)
from engines.plugins import locate_files
from specs.bundle import EngineFile, Graph, Manifest
from specs.errors import BuildError, GraphError

_ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One file to run: `where.stage` is its path in the bundle."""

    graph: Graph
    where: StageName
    target: str = ""
    capability: str = ""
    engine: EngineFile | None = None


def list_stages(graph: Graph) -> Iterable[Stage]:
    def name(file: str, backend: str, precision: str) -> StageName:
        return StageName(graph=graph.name, stage=file, backend=backend, precision=precision)

    yield Stage(graph=graph, where=name(graph.file, _ONNXRUNTIME, graph.precision))
    for typed in graph.typed:
        yield Stage(graph=graph, where=name(typed.file, _ONNXRUNTIME, typed.precision), target=typed.target)
    for engine in graph.engines:
        where = name(engine.file, engine.backend, engine.precision)
        yield Stage(graph=graph, where=where, target=engine.target, capability=engine.compute_capability, engine=engine)


def find_obstacle(stage: Stage, versions: dict[str, str]) -> str:
    """Why this machine cannot run a stage, "" when it can; its backend's version is added to `versions`."""
    available = load_backend(stage.where.backend).probe()
    if available.version:
        versions[stage.where.backend] = available.version
    if not available.can_run:
        return f"{stage.where.backend}: {available.reason}"
    if stage.capability and f"(SM {stage.capability})" not in available.device:
        return f"{stage.where.backend}: the engine is for compute capability {stage.capability}, not {available.device}"
    return ""


def load_runner(folder: Path, manifest: Manifest, stage: Stage) -> Any:
    plugins = locate_files(manifest, stage.engine) if stage.engine else ()
    runner = load_backend(stage.where.backend).load(folder / stage.where.stage, [folder / file for file in plugins])
    if stage.engine is None:  # an engine was built of one of these
        _require_inputs(runner, stage)
    return runner


def _require_inputs(runner: Any, stage: Stage) -> None:
    """GraphError where a runner takes other inputs than the manifest lists: Polygraphy makes up what a feed lacks."""
    with quiet_polygraphy(), hide_torch(), runner:
        taken = sorted(runner.get_input_metadata(use_numpy_dtypes=False))
    listed = sorted(tensor.name for tensor in stage.graph.inputs)
    if taken != listed:
        raise GraphError(
            "the graph's inputs are not those of the manifest",
            where=stage.where.stage,
            got=", ".join(taken),
            allowed=", ".join(listed) or "none",
            fix="export the bundle again",
        )


def ask_general(folder: Path, manifest: Manifest, stage: Stage, feed: Mapping[str, Array]) -> dict[str, Array]:
    """What the engine of all sizes says, which the golden data itself judges. Raises BuildError: there is none."""
    kind = (stage.engine.target, stage.engine.backend, stage.engine.precision) if stage.engine else ()
    for engine in stage.graph.engines:
        if not engine.sizes and (engine.target, engine.backend, engine.precision) == kind:
            where = replace(stage.where, stage=engine.file)
            general = replace(stage, where=where, engine=engine)
            return restore_interface(stage.graph, run_feeds(load_runner(folder, manifest, general), [feed])[0])
    raise BuildError(
        "the bundle has no engine of all sizes to compare this one with",
        fix="build it too, without --fixed: metagen-deploy build BUNDLE",
    )


def run_feeds(runner: Any, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
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


def list_refusals() -> tuple[type[Exception], ...]:
    """What a runner raises when a stage does not run; ONNX Runtime's own, where it is installed."""
    with quiet_polygraphy():
        from polygraphy.exception import PolygraphyException

    return (PolygraphyException, *(list_exceptions() if find_version() else ()))


def restore_interface(graph: Graph, outputs: Mapping[str, Array]) -> dict[str, Array]:
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
