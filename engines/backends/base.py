"""What a backend is: probe, compile, load, inspect. Standard library only.

    probe    what of this backend this machine can do, and the command that adds the rest
    compile  a typed ONNX file -> an engine file (or, where the ONNX file is the engine, a validating load)
    load     an engine -> a Polygraphy runner, for comparisons; an app uses engines.runtime
    inspect  an engine file -> what it says of itself

A backend is stateless: everything it needs is in the request, and everything it learned is in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from specs.progress import Progress
from specs.report import PrecisionShares

#: What is happening, and the fraction done (None when unknown).

Sizes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Availability:
    """What this machine can do with one backend; `reason` and `fix` speak of what it cannot."""

    backend: str
    version: str  # "" when not installed
    can_compile: bool
    can_run: bool
    device: str = ""  # what it would run on: "CPU", "NVIDIA H200 (SM 9.0)"
    reason: str = ""
    fix: str = ""  # the exact command, or step, that adds what is missing


@dataclass(frozen=True, kw_only=True)
class InputProfile:
    """The shapes of one input that an engine must take (minimum, maximum) and is tuned for (optimum)."""

    name: str
    minimum: Sizes
    optimum: Sizes
    maximum: Sizes


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """Everything a compiler is told. `output` is None for a backend that writes no engine."""

    model: Path
    output: Path | None
    precision: str
    profile: tuple[InputProfile, ...] = ()
    wide_profile: tuple[InputProfile, ...] = ()  # a second one, tuned for the largest sizes (`building.profiles`)
    compute_capabilities: tuple[str, ...] = ()  # "8.9"; several where the backend takes several
    keep_fp32: tuple[str, ...] = ()  # nodes to keep in fp32, for compilers without strong typing
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    plugins: tuple[Path, ...] = ()  # libraries that run nodes of this graph
    optimization_level: int | None = None


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    """What the compiler did. `shares` is measured on the compiler's own network, None when it does not show one."""

    backend_version: str
    seconds: float
    bytes: int
    layers: int = 0
    shares: PrecisionShares | None = None
    gpu: str = ""  # the device it was tuned on, "" when built ahead of time
    notes: tuple[str, ...] = field(default=())


class Backend(Protocol):
    """One way to turn a typed graph into something that runs."""

    @property
    def name(self) -> str: ...

    @property
    def writes_engines(self) -> bool:
        """False where the typed ONNX file is the engine."""

    @property
    def has_timing_cache(self) -> bool:
        """Whether a timing cache makes a second build faster."""

    @property
    def takes_two_profiles(self) -> bool:
        """Whether an engine of it can be tuned for usual and for largest sizes at once."""

    def probe(self) -> Availability:
        """Look at this machine; never raises, never imports torch."""

    def describe_capability(self, capability: str) -> str:
        """Why `capability` cannot be compiled for here, "" when it can."""

    def compile(self, request: CompileRequest, progress: Progress) -> CompileResult:
        """Compile one graph.

        Raises:
            MissingDependency, BuildError, GraphError, OutputError; nothing is left at `request.output` then.
        """

    @property
    def takes_plugins(self) -> bool:
        """Whether it compiles graphs with nodes that a plugin library runs (`engines.plugins`)."""

    def load(self, path: Path, plugins: Sequence[Path] = ()) -> Any:
        """A Polygraphy runner over an engine (an ONNX file for onnxruntime), its plugin libraries registered first.

        Raises:
            PreflightError, GraphError.
        """

    def inspect(self, path: Path, plugins: Sequence[Path] = ()) -> Mapping[str, Any]:
        """What an engine says of itself, its plugin libraries registered first.

        Raises:
            BuildError: it cannot be read on this machine. PreflightError: a library does not load.
        """
