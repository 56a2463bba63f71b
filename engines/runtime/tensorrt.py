"""TensorRT 8.6 to 11 and TensorRT-RTX behind the runtime's one `execute(names, feed)`: numpy in, numpy out.

    deserialise -> context -> per call: set shapes, copy in, execute_async_v3, copy out, synchronise

Device buffers belong to a tensor's name, grow when a shape needs more, and are reused; addresses are set again only
when a buffer moved. Calls are serialised by a lock, since a context has one set of shapes and addresses.

Not run here: written against the API that 8.6, 10 and 11 share, on a machine without a GPU (`cuda.py` did run on one).
Not done: pinned memory, CUDA graphs, keeping a cache on the device between calls, more than one optimization profile.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.cuda import CudaStream
from engines.runtime.preflight import ENGINE_MODULES, Candidate
from specs.bundle import Graph, IoTensor
from specs.errors import BundleError, InputError, PreflightError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


class TensorRTEngine:
    """One engine with one execution context on device 0."""

    def __init__(self, path: Path, graph: Graph, candidate: Candidate, *, plugins: Sequence[Path]) -> None:
        self._trt: Any = importlib.import_module(ENGINE_MODULES[candidate.backend])
        self._lock = threading.Lock()
        logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._libraries = [ctypes.CDLL(str(plugin), mode=ctypes.RTLD_GLOBAL) for plugin in plugins]
        self._trt.init_libnvinfer_plugins(logger, "")
        self._runtime = self._trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise PreflightError(
                f"{candidate.backend} {self._trt.__version__} refused the engine; its message stands above",
                where=candidate.file,
                fix="build it again on this machine: metagen-deploy build BUNDLE",
            )
        self._listed = {tensor.name: np.dtype(tensor.dtype) for tensor in (*graph.inputs, *graph.outputs)}
        self._dtypes = self._read_dtypes(path, graph)
        self._stream = CudaStream()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, capacity in bytes

    def execute(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The outputs called `names`, as new arrays."""
        with self._lock:
            self._stream.make_current()
            held = [self._copy_in(name, value) for name, value in feed.items()]
            outputs = {name: self._make_output(name) for name in self._dtypes if name not in feed}
            if not self._context.execute_async_v3(self._stream.handle):
                raise InputError(
                    "TensorRT could not run these inputs; its message stands above",
                    got=", ".join(f"{name} {list(value.shape)}" for name, value in feed.items()),
                    fix="keep sizes inside the ranges that the engine was built for",
                )
            for name in names:
                self._stream.copy_out(outputs[name].ctypes.data, self._buffers[name][0], outputs[name].nbytes)
            self._stream.synchronize()
            del held  # host memory of the inputs had to live until here
            return [outputs[name].astype(self._listed[name], copy=False) for name in names]

    def close(self) -> None:
        """Free the device's memory."""
        with self._lock:
            self._stream.make_current()
            self._context = self._engine = self._runtime = None
            for address, _ in self._buffers.values():
                self._stream.free(address)
            self._buffers.clear()
            self._stream.close()

    def _copy_in(self, name: str, value: Array) -> Array:
        array: Array = np.ascontiguousarray(value, dtype=self._dtypes[name])
        if self._shapes.get(name) != value.shape:
            if not self._context.set_input_shape(name, value.shape):
                self._shapes.pop(name, None)
                raise InputError(f"the engine does not take '{name}' in this shape", got=str(list(value.shape)))
            self._shapes[name] = value.shape
        self._stream.copy_in(self._reserve(name, array.nbytes), array.ctypes.data, array.nbytes)
        return array

    def _make_output(self, name: str) -> Array:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise BundleError(f"the size of output '{name}' depends on values, which this runtime does not serve")
        array: Array = np.empty(shape, dtype=self._dtypes[name])
        self._reserve(name, array.nbytes)
        return array

    def _reserve(self, name: str, size_bytes: int) -> int:
        """The address of a buffer of at least `size_bytes` for `name`, known to the context."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity < size_bytes or not address:
            if address:
                del self._buffers[name]
                self._stream.free(address)
            capacity = max(size_bytes, 1)
            address = self._stream.allocate(capacity)
            self._buffers[name] = (address, capacity)
            self._context.set_tensor_address(name, address)
        return address

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
        dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        for tensor in (*graph.inputs, *graph.outputs):
            _check_dtype(path, tensor, dtypes[tensor.name])
        return dtypes


def _check_dtype(path: Path, tensor: IoTensor, dtype: np.dtype[Any]) -> None:
    """Equal, or int32 in the engine for int64 in the manifest: TensorRT 8 has no int64."""
    if dtype == tensor.dtype or (dtype == np.int32 and tensor.dtype == "int64"):
        return
    raise BundleError(
        f"the engine's '{tensor.name}' has another dtype", where=str(path), got=str(dtype), allowed=tensor.dtype
    )
