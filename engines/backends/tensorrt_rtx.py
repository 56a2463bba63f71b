"""TensorRT-RTX: the real compiler, ahead of time and without a GPU; its engines run on GeForce and RTX GPUs.

One engine may hold several compute capabilities. It is of TensorRT 11's generation: strong typing only, so precision is
what the typed graph says. It has no timing cache (the functions exist and do nothing since 1.2): tactics are chosen on
the user's GPU at run time, where its *runtime* cache is kept; a build here takes seconds either way.
It proves that today's TensorRT takes a graph; it says nothing about fusion or speed on a server's TensorRT.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.backends.base import Availability, CompileRequest, CompileResult
from engines.backends.trt.compiler import compile_graph
from engines.runtime.device.cuda import find_gpu
from specs.errors import BuildError, PreflightError, missing_dependency
from specs.progress import Progress

NAME = "tensorrt-rtx"
DISTRIBUTION = "tensorrt_rtx_cu13"
#: Turing to Blackwell GeForce and RTX: what TensorRT-RTX 1.x has a member of ComputeCapability for.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_INSTALL = "pip install 'metagen-deploy[rtx]'"


class TensorRtRtxBackend:
    """See the module."""

    name = NAME
    writes_engines = True
    has_timing_cache = False
    takes_two_profiles = False
    takes_plugins = False

    def probe(self) -> Availability:
        version = find_version()
        if not version:
            return Availability(
                backend=NAME, version="", can_compile=False, can_run=False, fix=_INSTALL,
                reason="the package 'tensorrt_rtx' is not installed",
            )  # fmt: skip
        gpu = find_gpu()
        if gpu and gpu.compute_capability in CAPABILITIES:
            device = f"{gpu.name} (SM {gpu.compute_capability})"
            return Availability(backend=NAME, version=version, can_compile=True, can_run=True, device=device)
        seen = f"{gpu.name} (SM {gpu.compute_capability})" if gpu else "none"
        return Availability(
            backend=NAME, version=version, can_compile=True, can_run=False,
            reason=f"running needs a GPU of SM {', '.join(CAPABILITIES)}; GPU found: {seen}",
            fix="copy the bundle to a machine with a GeForce or RTX GPU and run it there",
        )  # fmt: skip

    def describe_capability(self, capability: str) -> str:
        if capability in CAPABILITIES:
            return ""
        known = ", ".join(CAPABILITIES)
        return f"TensorRT-RTX compiles for compute capability {known}, not for {capability or 'a target without a GPU'}"

    def compile(self, request: CompileRequest, progress: Progress) -> CompileResult:
        version = find_version()
        if not version:
            raise missing_dependency("tensorrt_rtx", extra="rtx", needed_for="compiling for TensorRT-RTX")
        for capability in request.compute_capabilities:
            if reason := self.describe_capability(capability):
                raise BuildError(
                    reason,
                    allowed=", ".join(CAPABILITIES),
                    fix="use --backend tensorrt on the device itself, from the same bundle",
                )
        return compile_graph(
            request, module="tensorrt_rtx", title="TensorRT-RTX", version=version, gpu="", progress=progress
        )

    def load(self, path: Path, plugins: Sequence[Path] = ()) -> Any:
        available = self.probe()
        if not available.can_run:
            raise PreflightError(
                "this engine cannot run on this machine", where=str(path), got=available.reason, fix=available.fix
            )
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read when polygraphy is first imported
        from polygraphy import config
        from polygraphy.backend.trt import EngineFromPath, TrtRunner

        config.USE_TENSORRT_RTX = True
        return TrtRunner(EngineFromPath(str(path)))

    def inspect(self, path: Path, plugins: Sequence[Path] = ()) -> Mapping[str, Any]:
        raise BuildError(
            "a TensorRT-RTX engine can only be opened on the GPU it is for",
            where=str(path),
            fix="read what was recorded when it was built: metagen-deploy inspect BUNDLE",
        )


def find_version() -> str:
    """The installed version, "" when there is none."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return ""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


BACKEND = TensorRtRtxBackend()
