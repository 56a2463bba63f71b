"""TensorRT 8.6 to 11 and TensorRT-RTX behind the runtime's one `execute(names, feed)`: numpy in, numpy out.

    new shapes    choose the profile -> set shapes -> reserve buffers -> copy in, execute_async_v3, copy out
    same again    the same three, captured as one CUDA graph
    from then on  launch the graph -> synchronise

Every tensor has a buffer on the device and a pinned one on the host; both grow when a shape needs more and are reused,
so that calls of one shape allocate nothing but the arrays that they return. A graph belongs to the context's current
shapes and addresses and is dropped with them. Calls are serialised by a lock, since a context has one set of both.

TensorRT 8 has no int64: such inputs are narrowed to int32 here, and refused when a value does not fit.

Run on an H200 with TensorRT 8.6.0 on 2026-11-22; not run with 10, 11 or TensorRT-RTX.
Not done: arrays that are on the GPU already, keeping a cache there between calls.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.plugins import load_libraries
from engines.runtime.cuda import CudaStream
from engines.runtime.preflight import ENGINE_MODULES, Candidate
from engines.runtime.shape_ranges import choose_profile, read_shape_ranges
from specs.bundle import Graph, IoTensor
from specs.errors import BundleError, InputError, MetagenError, PreflightError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

#: TensorRT's names; its own `nptype` fails under the versions of numpy that have no `np.bool`.
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "UINT8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


class TensorRTEngine:
    """One engine with one execution context on device 0."""

    def __init__(self, path: Path, graph: Graph, candidate: Candidate, *, plugins: Sequence[Path]) -> None:
        self._trt: Any = importlib.import_module(ENGINE_MODULES[candidate.backend])
        self._lock = threading.Lock()
        self._logger = _make_logger(self._trt)
        if plugins:
            load_libraries(self._trt, plugins)
        self._trt.init_libnvinfer_plugins(self._logger, "")
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise PreflightError(
                f"{candidate.backend} {self._trt.__version__} refused the engine",
                where=candidate.file,
                got=self._logger.take(),
                fix="build it again on this machine: metagen-deploy build BUNDLE",
            )
        self._listed = {tensor.name: np.dtype(tensor.dtype) for tensor in (*graph.inputs, *graph.outputs)}
        self._dtypes = self._read_dtypes(path, graph)
        self._inputs = tuple(tensor.name for tensor in graph.inputs)
        self._outputs = tuple(tensor.name for tensor in graph.outputs)
        self._ranges = read_shape_ranges(self._engine, self._inputs)
        self._profile = 0
        self._stream = CudaStream()
        self._device: dict[str, tuple[int, int]] = {}  # name -> address, capacity in bytes
        self._host: dict[str, tuple[int, int]] = {}
        self._views: dict[str, Array] = {}  # the pinned buffers as arrays of the current shapes
        self._shapes: tuple[tuple[int, ...], ...] | None = None  # of the inputs, once everything fits them
        self._has_run = False  # with these shapes: the first run may still set things up, so it is not captured
        self._graph = 0
        self.capture_refusal = ""  # why this engine runs without a CUDA graph, once that is known

    def execute(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The outputs called `names`, as new arrays."""
        with self._lock:
            self._stream.make_current()
            shapes = tuple([feed[name].shape for name in self._inputs])
            if shapes != self._shapes:
                self._set_shapes(shapes)
            for name in self._inputs:
                self._stage(name, feed[name])
            self._launch()
            self._stream.synchronize()
            return [self._views[name].astype(self._listed[name]) for name in names]

    def close(self) -> None:
        """Free the device's memory."""
        with self._lock:
            self._stream.make_current()
            self._forget_shapes()
            self._context = self._engine = self._runtime = None
            for address, _ in self._device.values():
                self._stream.free(address)
            for address, _ in self._host.values():
                self._stream.free_host(address)
            self._device.clear()
            self._host.clear()
            self._stream.close()

    def _stage(self, name: str, value: Array) -> None:
        view = self._views[name]
        if value.dtype.itemsize > view.dtype.itemsize and value.size:
            limits = np.iinfo(view.dtype)
            if value.min() < limits.min or value.max() > limits.max:
                raise InputError(
                    f"input '{name}' holds a value that the engine's {view.dtype} cannot",
                    got=f"{value.min()} to {value.max()}",
                    allowed=f"{limits.min} to {limits.max}",
                    fix="run the bundle with --backend onnxruntime, or build for TensorRT 10",
                )
        np.copyto(view, value, casting="same_kind")

    def _launch(self) -> None:
        if self._graph or (self._has_run and not self.capture_refusal and self._capture()):
            self._stream.launch(self._graph)
        else:
            self._enqueue()
            self._has_run = True

    def _capture(self) -> bool:
        try:
            self._graph = self._stream.capture(self._enqueue)
        except MetagenError as error:  # an engine with a loop or a host decision in it
            self.capture_refusal = error.got or error.problem
        return bool(self._graph)

    def _enqueue(self) -> None:
        for name in self._inputs:
            self._stream.copy_in(self._device[name][0], self._host[name][0], self._views[name].nbytes)
        if not self._context.execute_async_v3(self._stream.handle):
            raise InputError(
                "TensorRT could not run these inputs",
                got=self._logger.take(),
                fix="keep sizes inside the ranges that the engine was built for",
            )
        for name in self._outputs:
            self._stream.copy_out(self._host[name][0], self._device[name][0], self._views[name].nbytes)

    def _set_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._forget_shapes()
        self._set_profile(choose_profile(self._ranges, dict(zip(self._inputs, shapes, strict=True))))
        for name, shape in zip(self._inputs, shapes, strict=True):
            if not self._context.set_input_shape(name, shape):
                raise InputError(
                    f"the engine does not take '{name}' in this shape", got=f"{list(shape)}: {self._logger.take()}"
                )
            self._views[name] = self._reserve(name, shape)
        for name in self._outputs:
            found = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in found):
                raise BundleError(f"the size of output '{name}' depends on values, which this runtime does not serve")
            self._views[name] = self._reserve(name, found)
        self._shapes = shapes

    def _set_profile(self, index: int) -> None:
        if index == self._profile:
            return
        if not self._context.set_optimization_profile_async(index, self._stream.handle):
            raise InputError("TensorRT could not change to another optimisation profile", got=self._logger.take())
        self._stream.synchronize()
        self._profile = index
        for name, (address, _) in self._device.items():
            self._context.set_tensor_address(name, address)

    def _forget_shapes(self) -> None:
        self._shapes, self._has_run = None, False
        self._views.clear()
        if self._graph:
            self._stream.forget(self._graph)
            self._graph = 0

    def _reserve(self, name: str, shape: tuple[int, ...]) -> Array:
        """Room for `name` on both sides, known to the context; an array over the host's."""
        dtype = self._dtypes[name]
        count = int(np.prod(shape, dtype=np.int64))
        size_bytes = max(count * dtype.itemsize, 1)
        if self._device.get(name, (0, 0))[1] < size_bytes:
            if name in self._device:
                self._stream.free(self._device.pop(name)[0])
            self._device[name] = (self._stream.allocate(size_bytes), size_bytes)
            self._context.set_tensor_address(name, self._device[name][0])
        if self._host.get(name, (0, 0))[1] < size_bytes:
            if name in self._host:
                self._stream.free_host(self._host.pop(name)[0])
            self._host[name] = (self._stream.allocate_host(size_bytes), size_bytes)
        memory = (ctypes.c_char * size_bytes).from_address(self._host[name][0])
        return np.frombuffer(memoryview(memory), dtype, count).reshape(shape)

    def _read_dtypes(self, path: Path, graph: Graph) -> dict[str, np.dtype[Any]]:
        """The engine's own dtypes; BundleError where its tensors are not the manifest's."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        for mode, listed in ((trt.TensorIOMode.INPUT, graph.inputs), (trt.TensorIOMode.OUTPUT, graph.outputs)):
            got = {name for name in names if modes[name] == mode}
            if got != {tensor.name for tensor in listed}:
                raise BundleError("the engine's tensors are not those of the manifest", where=str(path), got=str(got))
        for name in names:
            if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
                raise BundleError(f"'{name}' is a shape tensor, which this runtime does not serve", where=str(path))
        dtypes = {name: _read_dtype(path, name, engine.get_tensor_dtype(name).name) for name in names}
        for tensor in (*graph.inputs, *graph.outputs):
            _check_dtype(path, tensor, dtypes[tensor.name])
        return dtypes


def _read_dtype(path: Path, tensor: str, name: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise BundleError(f"'{tensor}' is {name}, which numpy does not have", where=str(path))
    return np.dtype(_DTYPES[name])


def _check_dtype(path: Path, tensor: IoTensor, dtype: np.dtype[Any]) -> None:
    """Equal, or int32 in the engine for int64 in the manifest: TensorRT 8 has no int64."""
    if dtype == tensor.dtype or (dtype == np.int32 and tensor.dtype == "int64"):
        return
    raise BundleError(
        f"the engine's '{tensor.name}' has another dtype", where=str(path), got=str(dtype), allowed=tensor.dtype
    )


def _make_logger(trt: Any) -> Any:
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
