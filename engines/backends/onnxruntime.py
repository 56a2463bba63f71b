"""ONNX Runtime: the embedded default. The typed ONNX file is the engine, so compiling is a validating load.

No optimised copy is saved: what ONNX Runtime would write is laid out for the very CPU that wrote it, and building it
again at load takes well under a second for the shipped specs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.backends.base import Availability, CompileRequest, CompileResult
from engines.onnx_files.read import parse_onnx, read_onnx
from engines.runtime.executors.onnxruntime import make_ort_session
from specs.errors import BuildError, GraphError, MetagenError, missing_dependency
from specs.progress import Progress
from specs.system.mapped_session import has_large_weights, make_mapped_session

NAME = "onnxruntime"
#: Distributions that provide the module, the one with CUDA first.
DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime")
#: Providers in the order they are preferred; the ones that are not offered are left out.
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

_UNKNOWN_OPSET = "support for models stamped with official released onnx opset versions"


class OnnxRuntimeBackend:
    """See the module."""

    name = NAME
    writes_engines = False
    has_timing_cache = False
    takes_two_profiles = False
    takes_plugins = False

    def probe(self) -> Availability:
        if importlib.util.find_spec("onnxruntime") is None:
            return Availability(
                backend=NAME,
                version="",
                can_compile=False,
                can_run=False,
                reason="the package 'onnxruntime' is not installed",
                fix="pip install 'metagen-deploy[onnxruntime]'",
            )
        providers = list_providers()
        device = "CUDA, CPU" if "CUDAExecutionProvider" in providers else "CPU"
        return Availability(backend=NAME, version=find_version(), can_compile=True, can_run=True, device=device)

    def describe_capability(self, capability: str) -> str:
        return ""

    def compile(self, request: CompileRequest, progress: Progress) -> CompileResult:
        progress("loading the graph into ONNX Runtime", None)
        start = time.perf_counter()
        read_onnx(request.model)
        make_session(request.model)
        return CompileResult(
            backend_version=find_version(),
            seconds=time.perf_counter() - start,
            bytes=request.model.stat().st_size,
            notes=("ONNX Runtime runs the typed graph itself: there is no engine file",),
        )

    def load(self, path: Path, plugins: Sequence[Path] = ()) -> Any:
        try:
            from polygraphy.backend.onnxrt import OnnxrtRunner
        except ImportError:
            raise missing_dependency("polygraphy", extra="onnxruntime", needed_for="comparing outputs") from None
        return OnnxrtRunner(make_session(path))

    def inspect(self, path: Path, plugins: Sequence[Path] = ()) -> Mapping[str, Any]:
        session = make_session(path)
        return {"providers": session.get_providers(), "version": find_version()}


def list_providers() -> list[str]:
    """The execution providers of this installation that we use, best first."""
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    return [name for name in PROVIDERS if name in offered]


def find_version() -> str:
    """The installed version, "" when there is none."""
    installed = [d for d in DISTRIBUTIONS if any(importlib.metadata.distributions(name=d))]
    if installed:
        return importlib.metadata.version(installed[0])
    return ""


def make_session(path: Path, model_bytes: bytes | None = None, *, spare_memory: bool = True) -> Any:
    """A session over the file, or over `model_bytes` that refer to external data beside `path`.

    Args:
        spare_memory: large weights stay in their files, at the cost of speed: see `specs.system.mapped_session`.

    Raises:
        MissingDependency, GraphError (not a graph, unsupported opset or op, missing external data).
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_dependency("onnxruntime", extra="onnxruntime", needed_for="running ONNX files") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log is in the exception
    if model_bytes is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    model = str(path) if model_bytes is None else model_bytes
    try:
        if spare_memory and has_large_weights(path):
            return make_mapped_session(path, options, providers=list_providers(), model_bytes=model_bytes)
        file = read_onnx(path) if model_bytes is None else parse_onnx(model_bytes, path)
        return make_ort_session(model, options, list_providers(), half=file.has_halves())
    except list_exceptions() as error:
        raise translate_error(error, path) from None


def list_exceptions() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its exceptions have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel", "NoSuchFile",
        "NotImplemented", "RuntimeException",
    )  # fmt: skip
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


def translate_error(error: Exception, path: Path) -> MetagenError:
    """ONNX Runtime's words as one of ours: GraphError for a wrong graph, BuildError for what it cannot do."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    text = text.split(f"{path} failed:")[-1]
    kind = type(error).__name__
    if kind == "NotImplemented" or "is not a registered function/op" in text:
        return BuildError(
            f"ONNX Runtime {find_version()} has no implementation of an operator of this graph",
            where=str(path),
            got=text,
            fix="export for the target 'cpu', or run it with another backend",
        )
    if _UNKNOWN_OPSET in text:
        return GraphError(
            f"ONNX Runtime {find_version()} does not know this graph's opset",
            where=str(path),
            got=text[text.find("Opset ") :],
            fix="export the model at opset 18 to 24, or install a newer onnxruntime",
        )
    return GraphError(
        "ONNX Runtime refuses this graph",
        where=str(path),
        got=text,
        fix="check the file: python -m onnx.checker FILE, then export it again",
    )


BACKEND = OnnxRuntimeBackend()
