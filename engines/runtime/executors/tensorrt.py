"""TensorRT 8.6 to 11 and TensorRT-RTX behind the runtime's one `execute(names, feed)`.

    a call seen first      set a context to its shapes and addresses -> copy in, execute_async_v3, copy out
    the same again         the same three, captured as one CUDA graph
    from then on           launch the graph -> wait

numpy in, numpy out: through pinned buffers that are reused, so that a call allocates nothing but the arrays that it
returns. An input on the GPU (a `DeviceView`): read where it lies. Outputs that are kept are `DeviceArray`s that stay
there, in memory that is reused once they are dropped. A call is the same as another when shapes and addresses are the
same; several are kept (`tensorrt_contexts`). Calls are serialised by a lock, since all share one working memory.

TensorRT 8 has no int64: such inputs are narrowed to int32 here, and refused when a value does not fit. TensorRT wants
addresses aligned to 256 bytes: an input on the GPU that is not is copied there, once.

Run on an H200 with TensorRT 8.6.0; not run with 10, 11 or TensorRT-RTX.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.device.arrays import DeviceArray
from engines.runtime.device.cuda import CudaStream
from engines.runtime.device.pool import Block, BlockPool
from engines.runtime.device.staging import PinnedMemory, Staging, copy_into
from engines.runtime.device.views import DeviceView, view_device_array
from engines.runtime.executors.shape_ranges import choose_profile, read_shape_ranges
from engines.runtime.executors.tensorrt_contexts import Call, Contexts
from engines.runtime.executors.tensorrt_files import RUN_OTHERWISE, make_logger, open_engine, read_dtypes
from engines.runtime.preflight import ENGINE_MODULES, Candidate
from specs.bundle import Graph
from specs.errors import BundleError, InputError, MetagenError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

    Shapes = tuple[tuple[int, ...], ...]


_ALIGNMENT = 256  # bytes, of every address that TensorRT is given
_REMEMBERED_SHAPES = 1024


class TensorRTEngine:
    """One engine on device 0.

    Args:
        stream: handle of the CUDA stream that everything is put on; one of the engine's own by default. With the user's
            stream a call whose outputs stay on the GPU returns without waiting for them.
        beside: another engine of the graph, whose stream is taken instead; it has to be closed after this one.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        candidate: Candidate,
        *,
        plugins: Sequence[Path],
        stream: int | None = None,
        beside: TensorRTEngine | None = None,
    ) -> None:
        self._trt: Any = importlib.import_module(ENGINE_MODULES[candidate.backend])
        self._lock = threading.Lock()
        self._logger = make_logger(self._trt)
        self._beside = beside
        self._stream: CudaStream = beside._stream if beside else CudaStream(stream)
        try:
            self._runtime, self._engine = open_engine(self._trt, self._logger, path, candidate, plugins)
            self._listed = {tensor.name: np.dtype(tensor.dtype) for tensor in (*graph.inputs, *graph.outputs)}
            self._dtypes = read_dtypes(self._trt, self._engine, path, graph)
            self._inputs = tuple(tensor.name for tensor in graph.inputs)
            self._outputs = tuple(tensor.name for tensor in graph.outputs)
            self._ranges = read_shape_ranges(self._engine, self._inputs)
            self._contexts = Contexts(
                self._trt, self._engine, self._logger, self._stream, several=candidate.shares_profiles
            )
        except BaseException:
            self._engine = self._runtime = None
            self._close_stream()
            raise
        self._staging, self._pool = Staging(self._stream), BlockPool(self._stream)
        self._output_shapes: dict[Shapes, Shapes] = {}
        self._pinned: set[int] = beside._pinned if beside else set()  # addresses that `allocate` has lent
        self._unfinished = False  # a call of before may still read the pinned buffers
        self.capture_refusal = ""  # why this engine runs without CUDA graphs, once that is known

    @property
    def num_graphs(self) -> int:
        """CUDA graphs that are kept now."""
        return self._contexts.num_graphs

    def execute(
        self, names: Sequence[str], feed: Mapping[str, Array | DeviceView], keep: Sequence[str] | None = None
    ) -> list[Array | DeviceArray]:
        """The outputs called `names`: new arrays, those in `keep` on the GPU; by default all if an input is, or none.

        Raises:
            InputError: shapes outside the engine's ranges, or an integer that it cannot hold.
            PreflightError: the GPU is full, or refuses. The engine can be used on after any of these.
        """
        with self._lock:
            self._stream.make_current()
            values = [feed[name] for name in self._inputs]
            if keep is None:
                keep = ()
                for value in values:
                    if value.__class__ is DeviceView:
                        keep = self._outputs
            if keep:
                return self._execute_keeping(names, values, keep)
            call = self._run(values, self._locate(values), {})
            self._stream.synchronize()
            self._unfinished = False
            return [call.results[name].astype(self._listed[name]) for name in names]

    def _execute_keeping(
        self, names: Sequence[str], values: Sequence[Array | DeviceView], keep: Sequence[str]
    ) -> list[Array | DeviceArray]:
        shapes = tuple([value.shape for value in values])
        found = self._output_shapes.get(shapes)
        if found is None:
            found = self._infer_shapes(self._contexts.choose(self._choose_profile(shapes)), shapes)
        sizes = dict(zip(self._outputs, found, strict=True))
        blocks = {name: self._pool.take(self._count_bytes(name, sizes[name])) for name in self._outputs if name in keep}
        call = self._run(values, self._locate(values), blocks)
        if self._stream.is_own or call.results:
            self._stream.synchronize()
            self._unfinished = False
        else:
            self._unfinished = True
        return [
            DeviceArray(blocks[name], self._dtypes[name], sizes[name], self._stream)
            if name in blocks
            else call.results[name].astype(self._listed[name])
            for name in names
        ]

    def view(self, name: str, value: object) -> DeviceView:
        """An array of another library on the GPU as `execute` takes it, ordered before the engine's next call.

        Where the engine holds int32 for the manifest's int64, it is int32 that can be taken without a copy.
        """
        view = view_device_array(name, value, self._stream)
        if name in self._dtypes and self._dtypes[name] != self._listed[name]:
            if view.dtype == self._listed[name]:
                raise InputError(
                    f"input '{name}' is {view.dtype} on the GPU, and this engine holds {self._dtypes[name]}",
                    allowed=f"{self._dtypes[name]} on the GPU, or {view.dtype} in a numpy array, which is narrowed",
                    fix=f"tensor.to(torch.{self._dtypes[name]})",
                )
            if view.dtype == self._dtypes[name]:
                view.dtype = self._listed[name]
        return view

    def allocate(self, name: str, shape: tuple[int, ...]) -> Array:
        """An array for the input `name` that the GPU copies from without a detour; plain where it must be narrowed."""
        if self._dtypes[name] != self._listed[name]:
            return np.empty(shape, self._listed[name])
        with self._lock:
            self._stream.make_current()
            return np.asarray(PinnedMemory(self._stream, shape, self._listed[name], self._pinned))

    def close(self) -> None:
        """Free the device's memory. Outputs on the GPU that are still held keep theirs."""
        with self._lock:
            self._stream.make_current()
            self._stream.synchronize()
            self._contexts.close()
            self._engine = self._runtime = None
            self._staging.close()
            self._pool.close()
            self._close_stream()

    def _close_stream(self) -> None:
        if self._beside is None:
            self._stream.close()

    # ---- one call ----

    def _locate(self, values: Sequence[Array | DeviceView]) -> tuple[int, ...]:
        """The address that each input is read from, 0 for one that is copied into the pinned buffer first."""
        if not self._pinned:
            return tuple([value.address if isinstance(value, DeviceView) else 0 for value in values])
        return tuple([self._find_address(value) for value in values])

    def _find_address(self, value: Array | DeviceView) -> int:
        if isinstance(value, DeviceView):
            return value.address
        address = int(value.__array_interface__["data"][0])
        return address if address in self._pinned and value.flags.c_contiguous else 0

    def _run(
        self, values: Sequence[Array | DeviceView], addresses: tuple[int, ...], blocks: Mapping[str, Block]
    ) -> Call:
        """Put one call on the stream; `blocks` receive the outputs of their names, pinned buffers the others."""
        shapes = tuple([value.shape for value in values])
        key = (shapes, addresses, tuple([(name, block.address) for name, block in blocks.items()]))
        call = self._contexts.find(key)
        if self._unfinished and (call is None or call.staged):
            self._stream.synchronize()
            self._unfinished = False
        if call is None:
            call = self._contexts.choose(self._choose_profile(shapes))
            self._set_up(call, values, addresses, blocks)
            self._contexts.assign(call, key)
        for index, view in call.staged:
            self._stage(index, values[index], view)
        try:
            self._launch(call)
        except MetagenError:
            self._contexts.forget(call)
            raise
        return call

    def _stage(self, index: int, value: Any, view: Array) -> None:
        if value.dtype.itemsize > view.dtype.itemsize and value.size:
            limits = np.iinfo(view.dtype)
            if value.min() < limits.min or value.max() > limits.max:
                raise InputError(
                    f"input '{self._inputs[index]}' holds a value that the engine's {view.dtype} cannot",
                    got=f"{value.min()} to {value.max()}",
                    allowed=f"{limits.min} to {limits.max}",
                    fix="run the bundle with --backend onnxruntime, or build for TensorRT 10",
                )
        copy_into(view, value)

    def _launch(self, call: Call) -> None:
        if not call.graph and call.has_run and not self.capture_refusal:
            self._capture(call)
        if call.graph:
            self._stream.launch(call.graph)
        else:
            self._enqueue(call, self._stream)
            call.has_run = True  # the first run may still set things up, so it is not captured

    def _capture(self, call: Call) -> None:
        self._stream.synchronize()
        try:
            call.graph = self._stream.capture(lambda recorder: self._enqueue(call, recorder))
        except MetagenError as error:  # an engine with a loop or a host decision in it
            self.capture_refusal = error.got or error.problem

    def _enqueue(self, call: Call, stream: CudaStream) -> None:
        if not call.enqueue(stream):
            raise InputError(
                "TensorRT could not run these inputs",
                got=self._logger.take(),
                fix="keep sizes inside the ranges that the engine was built for",
            )

    # ---- setting a context up ----

    def _choose_profile(self, shapes: Shapes) -> int:
        return choose_profile(self._ranges, dict(zip(self._inputs, shapes, strict=True)))

    def _infer_shapes(self, call: Call, shapes: Shapes) -> Shapes:
        """Set the inputs' shapes; those of the outputs."""
        if call.shapes != shapes:
            call.shapes = None
            for name, shape in zip(self._inputs, shapes, strict=True):
                if not call.context.set_input_shape(name, shape):
                    raise InputError(
                        f"the engine does not take '{name}' in this shape",
                        got=f"{list(shape)}: {self._logger.take()}",
                        allowed=self._spell_ranges(name),
                        fix="keep to these sizes, or build the bundle with wider ranges: --dim at export",
                    )
            call.shapes = shapes
        found = tuple(tuple(call.context.get_tensor_shape(name)) for name in self._outputs)
        for name, shape in zip(self._outputs, found, strict=True):
            if any(size < 0 for size in shape):
                raise BundleError(
                    f"the size of output '{name}' depends on values, which this runtime does not serve",
                    fix=RUN_OTHERWISE,
                )
        if len(self._output_shapes) >= _REMEMBERED_SHAPES:
            self._output_shapes.clear()
        self._output_shapes[shapes] = found
        return found

    def _spell_ranges(self, name: str) -> str:
        return " or ".join(f"{list(low)} to {list(high)}" for low, high in (ranges[name] for ranges in self._ranges))

    def _set_up(
        self,
        call: Call,
        values: Sequence[Array | DeviceView],
        addresses: tuple[int, ...],
        blocks: Mapping[str, Block],
    ) -> None:
        """Give a context its shapes and addresses, and say what has to be copied before and after it."""
        shapes = tuple([value.shape for value in values])
        outputs = self._infer_shapes(call, shapes)
        call.staged, call.copies_in, call.copies_out, call.results = [], [], [], {}
        try:
            for index, value in enumerate(values):
                self._place_input(call, index, value, addresses[index])
            for name, shape in zip(self._outputs, outputs, strict=True):
                if name in blocks:
                    call.context.set_tensor_address(name, blocks[name].address)
                else:
                    self._place_result(call, name, shape)
        finally:
            if self._staging.moved:  # whatever was set up with the old buffers is gone with them
                self._staging.moved = False
                self._contexts.forget_others(call)

    def _place_input(self, call: Call, index: int, value: Array | DeviceView, address: int) -> None:
        name, size_bytes = self._inputs[index], self._count_bytes(self._inputs[index], value.shape)
        on_device = isinstance(value, DeviceView)
        if on_device and address % _ALIGNMENT == 0:
            call.context.set_tensor_address(name, address)
            return
        here = self._staging.reserve_device(name, size_bytes)
        call.context.set_tensor_address(name, here)
        if not address:
            view = self._staging.reserve_host(name, value.shape, self._dtypes[name])
            call.staged.append((index, view))
            address = view.ctypes.data
        call.copies_in.append(("copy_across" if on_device else "copy_in", here, address, size_bytes))

    def _place_result(self, call: Call, name: str, shape: tuple[int, ...]) -> None:
        size_bytes = self._count_bytes(name, shape)
        here = self._staging.reserve_device(name, size_bytes)
        call.context.set_tensor_address(name, here)
        call.results[name] = self._staging.reserve_host(name, shape, self._dtypes[name])
        call.copies_out.append(("copy_out", call.results[name].ctypes.data, here, size_bytes))

    def _count_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._dtypes[name].itemsize
