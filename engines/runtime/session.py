"""An opened bundle: named arrays in, named arrays out, and a record of what was chosen to run each graph.

    load(folder) -> read manifest -> sizes of all files -> per graph: candidates -> digests -> backend -> Session

Sessions may be shared by threads: ONNX Runtime runs calls in parallel, TensorRT one after another. Inputs are read
and never written; outputs are new arrays that belong to the caller. Arrays on the GPU: see `device_arrays`. Nothing
here is a model's host loop: see `engines.runtime.pipelines`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engines.runtime.executors.fixed_sizes import OpenEngine, SizedEngines, spell_sizes
from engines.runtime.executors.onnxruntime import open_onnx
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.graph_session import Choice, GraphSession, do_nothing
from engines.runtime.pipelines import open_pipeline
from engines.runtime.preflight import (
    ENGINE_MODULES,
    Candidate,
    Machine,
    check_sizes,
    list_candidates,
    list_fixed,
    probe_machine,
    verify_candidate,
)
from specs.bundle import Graph, Manifest
from specs.bundle.files import read_manifest, resolve_inside
from specs.errors import InputError, PreflightError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


class Session:
    """An opened bundle; made by `load`. A context manager."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        self.folder, self.manifest, self.graphs = folder, manifest, dict(graphs)
        self._only = next(iter(self.graphs.values())) if len(self.graphs) == 1 else None
        #: The host loop of this bundle's kind: ImageClassification, TextGeneration, ImageTextSimilarity or Tensors.
        #: Untyped, since a caller knows which kind its bundle is and a type checker does not.
        self.pipeline: Any = open_pipeline(folder, manifest, self.graphs)

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        keep: Sequence[str] | None = None,
        check_finite: bool = False,
    ) -> dict[str, Array]:
        """Run the only graph of a bundle that has one; see `GraphSession.run`."""
        if self._only is None:
            names = list(self.graphs)
            raise InputError(
                "this bundle has several graphs, say which one to run",
                where=str(self.folder),
                allowed=", ".join(names),
                fix=f"session.graphs['{names[0]}'].run(...), or session.pipeline for the whole model",
            )
        return self._only.run(inputs, outputs, keep=keep, check_finite=check_finite)

    @property
    def backend_notes(self) -> tuple[Choice, ...]:
        """For every graph: the file, backend and precision that run it, and what was passed over and why."""
        return tuple(graph.choice for graph in self.graphs.values())

    def describe(self) -> str:
        """`backend_notes` as text, a graph a paragraph."""
        return "\n".join(str(choice) for choice in self.backend_notes)

    def close(self) -> None:
        """Release every backend."""
        for graph in self.graphs.values():
            graph.close()

    def __enter__(self) -> Session:  # noqa: PYI034 - typing.Self is Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    folder: str | Path,
    *,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    machine: Machine | None = None,
    stream: int | None = None,
) -> Session:
    """Open a bundle on the best backend that runs here, and say which (`Session.describe`).

    Args:
        folder: the bundle.
        backend: "tensorrt", "tensorrt-rtx", "onnxruntime", "onnxruntime-cuda" or "onnxruntime-cpu" to demand one; the
            first that fits by default, in the order TensorRT, ONNX Runtime on CUDA, on the CPU.
        precision: "fp32", "fp16", "int8", ... to demand one; the manifest's first by default.
        threads: of ONNX Runtime on the CPU; one a core by default.
        verify: digest the files that are used; False compares sizes only.
        machine: what to take this machine for; probed by default.
        stream: handle of a CUDA stream to put TensorRT's work on, `torch.cuda.Stream().cuda_stream` or a cupy stream's
            `ptr`; one of the session's own by default. Then outputs on the GPU are returned before they are ready, in
            that stream's order, and their inputs must live, unchanged by other streams, until it has come that far.

    Raises:
        BundleError: a file is missing, changed or outside the bundle, or the manifest is malformed or too new.
        PreflightError: nothing in the bundle fits this machine, or what was demanded does not.
        InputError: an unknown backend.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    machine = machine or probe_machine()
    opened: dict[str, GraphSession] = {}
    try:
        for graph in manifest.graphs:
            candidates = list_candidates(manifest, graph, backend=backend, precision=precision, machine=machine)
            opened[graph.name] = _open_graph(
                folder, manifest, graph, candidates, machine=machine, threads=threads, verify=verify, stream=stream
            )
        return Session(folder, manifest, opened)
    except BaseException:
        for session in opened.values():
            session.close()
        raise


def _open_graph(
    folder: Path,
    manifest: Manifest,
    graph: Graph,
    candidates: Sequence[Candidate],
    *,
    machine: Machine,
    threads: int | None,
    verify: bool,
    stream: int | None,
) -> GraphSession:
    passed_over: dict[str, None] = {}  # an ordered set
    for candidate in candidates:
        if candidate.obstacle:
            passed_over[candidate.explain_obstacle()] = None
            continue
        if verify:
            verify_candidate(folder, manifest, candidate)
        try:
            opened = _open_candidate(folder, graph, candidate, threads=threads, stream=stream)
        except PreflightError as error:
            passed_over[_word_refusal(candidate, error)] = None
            continue
        fixed = []
        for faster in list_fixed(manifest, graph, candidate, machine):
            if verify:
                verify_candidate(folder, manifest, faster)
            try:
                found = _open_candidate(folder, graph, faster, threads=threads, stream=stream, beside=opened)
                fixed.append((faster, found))
            except PreflightError as error:
                passed_over[_word_refusal(faster, error)] = None
        if fixed:
            both = SizedEngines(graph, opened, [engine for _, engine in fixed])
            opened = replace(opened, execute=both.execute, close=both.close)
        fitting = (c.precision for c in candidates if c.backend == candidate.backend and not c.obstacle)
        choice = Choice(
            graph=graph.name,
            file=candidate.file,
            backend=candidate.backend,
            precision=candidate.precision,
            passed_over=tuple(passed_over),
            other_precisions=tuple(p for p in dict.fromkeys(fitting) if p != candidate.precision),
            fixed=tuple(f"{spell_sizes(faster.sizes)}: {faster.file}" for faster, _ in fixed),
            reason=candidate.merit,
        )
        return GraphSession(
            graph,
            manifest.dims,
            choice=choice,
            execute=opened.execute,
            close=opened.close,
            view=opened.view,
            allocate=opened.allocate,
            fixed_sizes=[faster.sizes for faster, _ in fixed],
        )
    raise _refuse_all(folder, graph, passed_over)


def _refuse_all(folder: Path, graph: Graph, reasons: Iterable[str]) -> PreflightError:
    return PreflightError(
        f"nothing of what was asked runs graph '{graph.name}' on this machine",
        where=str(folder),
        got="\n           ".join(reasons),
        fix="metagen-deploy build BUNDLE makes an engine for this machine; or ask for no backend and no precision",
    )


def _word_refusal(candidate: Candidate, error: PreflightError) -> str:
    refusal = f"{error.problem}{f': {error.got}' if error.got else ''}"
    return f"{candidate.file} on {candidate.backend}: {refusal}"


def _open_candidate(
    folder: Path,
    graph: Graph,
    candidate: Candidate,
    *,
    threads: int | None,
    stream: int | None,
    beside: OpenEngine | None = None,
) -> OpenEngine:
    path = resolve_inside(folder, candidate.file)
    if candidate.backend in ENGINE_MODULES:
        plugins = [resolve_inside(folder, plugin) for plugin in candidate.plugins]
        first = beside.engine if beside else None
        engine = TensorRTEngine(path, graph, candidate, plugins=plugins, stream=stream, beside=first)
        return OpenEngine(
            execute=engine.execute,
            close=engine.close,
            sizes=candidate.sizes,
            view=engine.view,
            allocate=engine.allocate,
            engine=engine,
        )
    return OpenEngine(execute=open_onnx(path, graph, candidate, threads=threads), close=do_nothing, sizes={})
