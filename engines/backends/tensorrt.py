"""TensorRT 8.6 to 11.x: compiles on, and for, the GPU of the machine it runs on (a server's, or a Jetson's own).

The versions differ by the table in `trt.versions`; the rest is shared with TensorRT-RTX. Needs `tensorrt` and numpy
alone to compile, so that a Jetson builds from the bundle's typed graph.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.backends.base import Availability, CompileRequest, CompileResult
from engines.backends.trt.compiler import compile_graph
from engines.plugins import load_libraries
from engines.runtime.device.cuda import find_gpu
from engines.runtime.executors.shape_ranges import choose_profile, read_shape_ranges
from engines.runtime.executors.tensorrt_contexts import read_memory_bytes
from specs.errors import BuildError, PreflightError, missing_dependency
from specs.progress import Progress

NAME = "tensorrt"
#: Distributions that provide the module `tensorrt`; a Jetson's is the system package's own.
DISTRIBUTIONS = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_cu11")
_INSTALL = (
    "sudo apt install nvidia-tensorrt" if platform.machine() == "aarch64" else "pip install 'metagen-deploy[tensorrt]'"
)


class TensorRtBackend:
    """See the module."""

    name = NAME
    writes_engines = True
    has_timing_cache = True
    takes_two_profiles = True
    takes_plugins = True

    def probe(self) -> Availability:
        version, gpu = find_version(), find_gpu()
        if version and gpu:
            device = f"{gpu.name} (SM {gpu.compute_capability})"
            return Availability(backend=NAME, version=version, can_compile=True, can_run=True, device=device)
        missing = "the package 'tensorrt' is not installed" if not version else "no NVIDIA GPU (or driver) was found"
        fix = _INSTALL if not version else "build on the machine the engine is for, from this bundle"
        return Availability(backend=NAME, version=version, can_compile=False, can_run=False, reason=missing, fix=fix)

    def describe_capability(self, capability: str) -> str:
        """TensorRT compiles for the GPU it runs on."""
        gpu = find_gpu()
        if gpu is None:
            return "TensorRT compiles on the GPU it is for, and this machine has none"
        if gpu.compute_capability != capability:
            return (
                f"TensorRT compiles for the GPU it runs on: {gpu.name} has compute capability "
                f"{gpu.compute_capability}, the target {capability or 'none'}"
            )
        return ""

    def compile(self, request: CompileRequest, progress: Progress) -> CompileResult:
        available = self.probe()
        if not available.version:
            raise missing_dependency("tensorrt", extra="tensorrt", needed_for="compiling with TensorRT")
        for capability in request.compute_capabilities:
            if reason := self.describe_capability(capability):
                raise BuildError(reason, fix="build on the machine the engine is for, from this bundle")
        gpu = find_gpu()
        return compile_graph(
            request,
            module="tensorrt",
            title="TensorRT",
            version=available.version,
            gpu=gpu.name if gpu else "",
            progress=progress,
        )

    def load(self, path: Path, plugins: Sequence[Path] = ()) -> Any:
        available = self.probe()
        if not available.can_run:
            raise PreflightError(
                "this engine cannot run on this machine", where=str(path), got=available.reason, fix=available.fix
            )
        if plugins:
            load_libraries(importlib.import_module("tensorrt"), plugins)
        return _make_runner(path)

    def inspect(self, path: Path, plugins: Sequence[Path] = ()) -> Mapping[str, Any]:
        available = self.probe()
        if not available.can_run:
            raise BuildError(
                "a TensorRT engine can only be opened on the GPU it is for",
                where=str(path),
                got=available.reason,
                fix="read what was recorded when it was built: metagen-deploy inspect BUNDLE",
            )
        if plugins:  # reading an engine asks for the creators of its plugins
            load_libraries(importlib.import_module("tensorrt"), plugins)
        return _read_engine(path)


def _make_runner(path: Path) -> Any:
    """Polygraphy's runner, which by itself stays with the first optimisation profile."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    class ProfiledRunner(TrtRunner):  # type: ignore[misc]  # the base is known only here
        def infer_impl(self, feed_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
            ranges = read_shape_ranges(self.engine, list(feed_dict))
            shapes = {name: tuple(value.shape) for name, value in feed_dict.items()}
            if (index := choose_profile(ranges, shapes)) != self.context.active_optimization_profile:
                self.set_profile(index)
                self.stream.synchronize()
            return super().infer_impl(feed_dict, *arguments, **options)

    return ProfiledRunner(EngineFromBytes(BytesFromPath(str(path))))  # EngineFromPath needs TensorRT 10


def _read_engine(path: Path) -> Mapping[str, Any]:
    import json

    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BuildError(
            f"TensorRT {trt.__version__} cannot open this engine",
            where=str(path),
            fix="it was built by another version or for another GPU: build it again",
        )
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text, strict=False).get("Layers", [])  # 8.6 joins names by a bare control character
    return {"version": trt.__version__, "layers": layers, "device_memory_bytes": read_memory_bytes(engine)}


def find_version() -> str:
    """The installed version, "" when there is none. Metadata first: importing takes a second."""
    if importlib.util.find_spec("tensorrt") is None:
        return ""
    installed = [d for d in DISTRIBUTIONS if any(importlib.metadata.distributions(name=d))]
    if installed:
        return importlib.metadata.version(installed[0])
    import tensorrt

    return str(tensorrt.__version__)


BACKEND = TensorRtBackend()
