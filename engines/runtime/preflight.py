"""What of a bundle runs on this machine, decided from the manifest before a byte of an engine is deserialised.

    TensorRT engine that fits  ->  ONNX Runtime on CUDA  ->  ONNX Runtime on the CPU
                                   (typed graph of that precision, else the portable one)

Every file that could have been taken is a `Candidate`; one that does not fit says why, so nothing is passed over in
silence. A file that fits on paper may still be refused by its backend: the session then goes on to the next one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from engines.onnx_files.read import require_listed_weights
from engines.plugins import locate_files
from engines.runtime.device.cuda import Gpu, find_gpu
from specs.bundle import EngineFile, Graph, Manifest
from specs.bundle.files import resolve_inside, verify_files
from specs.errors import BundleError, InputError, PreflightError, name_nearest

ONNXRUNTIME_CUDA, ONNXRUNTIME_CPU = "onnxruntime-cuda", "onnxruntime-cpu"
ENGINE_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # backend -> Python module, best first
#: What `backend=` may say -> the backends it stands for, best first.
BACKENDS: dict[str | None, tuple[str, ...]] = {
    None: (*ENGINE_MODULES, ONNXRUNTIME_CUDA, ONNXRUNTIME_CPU),
    "onnxruntime": (ONNXRUNTIME_CUDA, ONNXRUNTIME_CPU),
    **{name: (name,) for name in (*ENGINE_MODULES, ONNXRUNTIME_CUDA, ONNXRUNTIME_CPU)},
}
_VERSION_PARTS = 3  # an engine is tied to major.minor.patch of its TensorRT


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What preflight needs to know. `find_version` maps a module to its version, or raises ImportError."""

    gpu: Gpu | None
    find_version: Callable[[str], str]
    onnxruntime_providers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file that could run a graph. `obstacle` says why it cannot here; it is empty for one that fits."""

    file: str
    backend: str
    precision: str
    obstacle: str = ""
    plugins: tuple[str, ...] = ()  # libraries of the bundle to load first
    sizes: Mapping[str, int] = field(default_factory=dict)  # dim -> the one size it takes; {}: all of them
    merit: str = ""  # why it can run here, for one that fits
    shares_profiles: bool = False  # whether several execution contexts of the engine may be in one profile

    def explain_obstacle(self) -> str:
        """A line that says why not: of an engine, or of all files of a backend at once."""
        subject = self.file if self.backend in ENGINE_MODULES else "any file"
        return f"{subject} on {self.backend}: {self.obstacle}"


def probe_machine() -> Machine:
    """Look at this machine; imports ONNX Runtime when it is installed, and TensorRT only when asked for a version."""
    try:
        providers = tuple(importlib.import_module("onnxruntime").get_available_providers())
    except ImportError:
        providers = ()
    return Machine(gpu=find_gpu(), find_version=find_version, onnxruntime_providers=providers)


@cache
def find_version(module: str) -> str:
    """`__version__` of an installed module; raises ImportError when it does not import."""
    return str(getattr(importlib.import_module(module), "__version__", "unknown"))


def list_candidates(
    manifest: Manifest, graph: Graph, *, backend: str | None, precision: str | None, machine: Machine
) -> tuple[Candidate, ...]:
    """Every file of `graph` that `backend` and `precision` leave, best first, each with its obstacle if it has one."""
    if backend not in BACKENDS:
        raise InputError(
            f"unknown backend '{backend}'",
            allowed=name_nearest(str(backend), [b for b in BACKENDS if b]),
            fix="leave `backend` away for the best one that runs here",
        )
    found = [c for name in BACKENDS[backend] for c in _list_for_backend(manifest, graph, name, machine)]
    asked = tuple(c for c in found if precision in (None, c.precision))
    if not asked:
        there = sorted({c.precision for c in found})
        raise PreflightError(
            f"graph '{graph.name}' has nothing for {backend or 'any backend'}"
            + (f" in precision {precision}" if precision else ""),
            allowed=f"precisions of this graph there: {', '.join(there) or 'none'}",
            fix="export or build the bundle with it, or ask for one that is there",
        )
    return asked


def list_fixed(manifest: Manifest, graph: Graph, chosen: Candidate, machine: Machine) -> tuple[Candidate, ...]:
    """The engines of one size that may run beside `chosen`, which takes every size: as precise, and fitting here."""
    if chosen.backend not in ENGINE_MODULES:
        return ()
    found = _list_engines(manifest, graph, chosen.backend, machine)
    return tuple(c for c in found if c.sizes and c.precision == chosen.precision and not c.obstacle)


def _list_engines(manifest: Manifest, graph: Graph, backend: str, machine: Machine) -> Iterator[Candidate]:
    for engine in graph.engines:
        if engine.backend == backend:
            plugins, obstacle = _find_plugins(manifest, engine)
            yield Candidate(
                file=engine.file,
                backend=backend,
                precision=engine.precision,
                obstacle=_find_engine_obstacle(engine, machine) or obstacle,
                plugins=plugins,
                sizes=engine.sizes,
                shares_profiles=_shares_profiles(engine),
                merit=f"the engine is for {_spell_gpu(engine, machine)} and {engine.backend} "
                f"{engine.backend_version}, both of which are here",
            )


def _list_for_backend(manifest: Manifest, graph: Graph, backend: str, machine: Machine) -> Iterator[Candidate]:
    if backend in ENGINE_MODULES:
        yield from (c for c in _list_engines(manifest, graph, backend, machine) if not c.sizes)
        return
    obstacle = _find_onnxruntime_obstacle(backend, machine)
    typed = [t for t in graph.typed if t.lowering == "onnxruntime"]
    if backend == ONNXRUNTIME_CPU:
        typed = [t for t in typed if t.target == "cpu"]
    else:
        typed.sort(key=lambda t: t.target == "cpu")  # stable: graphs lowered for a GPU come first
    for t in typed:
        merit = f"it is typed for {t.target}"
        yield Candidate(file=t.file, backend=backend, precision=t.precision, obstacle=obstacle, merit=merit)
    merit = "the portable graph runs wherever ONNX Runtime does"
    yield Candidate(file=graph.file, backend=backend, precision=graph.precision, obstacle=obstacle, merit=merit)


def _find_onnxruntime_obstacle(backend: str, machine: Machine) -> str:
    if not machine.onnxruntime_providers:
        return "the package 'onnxruntime' is not installed (pip install onnxruntime)"
    if backend == ONNXRUNTIME_CPU:
        return ""
    if machine.gpu is None:
        return "this machine has no NVIDIA GPU"
    has_cuda = "CUDAExecutionProvider" in machine.onnxruntime_providers
    return "" if has_cuda else "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)"


def _find_engine_obstacle(engine: EngineFile, machine: Machine) -> str:
    if machine.gpu is None:
        built_for = f"built for compute capability {engine.compute_capability}"
        return f"{built_for}, and this machine has no NVIDIA GPU"
    if engine.compute_capability != machine.gpu.compute_capability:
        here = f"{machine.gpu.name} has {machine.gpu.compute_capability}"
        return f"built for compute capability {engine.compute_capability}, {here}"
    module = ENGINE_MODULES[engine.backend]
    try:
        version = machine.find_version(module)
    except ImportError as error:
        return f"the package '{module}' does not import: {error}"
    if version.split(".")[:_VERSION_PARTS] != engine.backend_version.split(".")[:_VERSION_PARTS]:
        return f"built with {engine.backend} {engine.backend_version}, {version} is installed"
    return ""


def _shares_profiles(engine: EngineFile) -> bool:
    """TensorRT 8 crashes where it is asked for what an engine was not built for; later ones build all engines so."""
    return engine.shares_profiles or engine.backend != "tensorrt" or not engine.backend_version.startswith("8.")


def _spell_gpu(engine: EngineFile, machine: Machine) -> str:
    name = f" ({machine.gpu.name})" if machine.gpu else ""
    return f"compute capability {engine.compute_capability}{name}"


def _find_plugins(manifest: Manifest, engine: EngineFile) -> tuple[tuple[str, ...], str]:
    """The bundle's files that are the engine's plugin libraries (by digest), and what is missing."""
    try:
        return locate_files(manifest, engine), ""
    except PreflightError as error:
        return (), f"{error.problem} ({error.fix})"


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Every file is there and as long as the manifest says; a truncated copy is found without reading it."""
    for name, entry in manifest.files.items():
        path = resolve_inside(folder, name)
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            raise BundleError(
                "a file of the bundle is missing" if size is None else "a file of the bundle was truncated or changed",
                where=str(path),
                got=None if size is None else f"{size} bytes",
                allowed=f"{entry.bytes} bytes",
                fix="copy the whole bundle again, or export it again",
            )


def verify_candidate(folder: Path, manifest: Manifest, candidate: Candidate) -> None:
    """Digest exactly what this candidate reads: its file, the weights that an ONNX file names, its plugins."""
    verify_files(folder, manifest, (candidate.file, *candidate.plugins))
    if candidate.backend in ENGINE_MODULES:
        return
    verify_files(folder, manifest, require_listed_weights(folder, manifest, candidate.file))
