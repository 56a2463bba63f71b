"""An engine's file opened: deserialised by TensorRT, its tensors compared with the manifest's, its words kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.plugins import load_libraries
from engines.runtime.preflight import Candidate
from specs.bundle import Graph, IoTensor
from specs.errors import BundleError, PreflightError

#: TensorRT's names; its own `nptype` fails under the versions of numpy that have no `np.bool`.
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "UINT8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
RUN_OTHERWISE = "run it with ONNX Runtime: pip install onnxruntime"


def open_engine(trt: Any, logger: Any, path: Path, candidate: Candidate, plugins: Sequence[Path]) -> tuple[Any, Any]:
    """TensorRT's runtime and the engine, for which the libraries of `plugins` are loaded first.

    Raises:
        PreflightError: TensorRT refuses the file.
    """
    if plugins:
        load_libraries(trt, plugins)
    trt.init_libnvinfer_plugins(logger, "")
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise PreflightError(
            f"{candidate.backend} {trt.__version__} refused the engine",
            where=candidate.file,
            got=logger.take(),
            fix="build it again on this machine: metagen-deploy build BUNDLE",
        )
    return runtime, engine


def read_dtypes(trt: Any, engine: Any, path: Path, graph: Graph) -> dict[str, np.dtype[Any]]:
    """The engine's own dtypes; BundleError where its tensors are not the manifest's."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name) for name in names}
    for mode, listed in ((trt.TensorIOMode.INPUT, graph.inputs), (trt.TensorIOMode.OUTPUT, graph.outputs)):
        got = {name for name in names if modes[name] == mode}
        if got != {tensor.name for tensor in listed}:
            raise _refuse(path, "the engine's tensors are not those of the manifest", got=str(got))
    for name in names:
        if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
            raise BundleError(
                f"'{name}' is a shape tensor, which this runtime does not serve",
                where=str(path),
                fix=RUN_OTHERWISE,
            )
    dtypes = {name: _read_dtype(path, name, engine.get_tensor_dtype(name).name) for name in names}
    for tensor in (*graph.inputs, *graph.outputs):
        _check_dtype(path, tensor, dtypes[tensor.name])
    return dtypes


def _read_dtype(path: Path, tensor: str, name: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise _refuse(path, f"'{tensor}' is {name}, which numpy does not have")
    return np.dtype(_DTYPES[name])


def _check_dtype(path: Path, tensor: IoTensor, dtype: np.dtype[Any]) -> None:
    """Equal, or int32 in the engine for int64 in the manifest: TensorRT 8 has no int64."""
    if dtype == tensor.dtype or (dtype == np.int32 and tensor.dtype == "int64"):
        return
    raise _refuse(path, f"the engine's '{tensor.name}' has another dtype", got=str(dtype), allowed=tensor.dtype)


def _refuse(path: Path, problem: str, got: str | None = None, allowed: str | None = None) -> BundleError:
    """An engine that is not what the manifest says."""
    fix = "build the bundle again: metagen-deploy build BUNDLE"
    return BundleError(problem, where=str(path), got=got, allowed=allowed, fix=fix)


def make_logger(trt: Any) -> Any:
    """Keeps what TensorRT says of errors until an error of ours repeats it; its own logger writes to stdout."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors = [*self.errors[-3:], " ".join(text.split())]

        def take(self) -> str:
            text, self.errors = "; ".join(self.errors), []
            return text or "it gave no reason"

    return Logger()
