"""Arrays that lie on the GPU: another library's as an input, taken where it lies; ours as an output, left where it is.

    torch, cupy, JAX, ...  --__dlpack__(stream), or __cuda_array_interface__-->  DeviceView   address, dtype, shape
    DeviceArray            --__dlpack__(stream), or __cuda_array_interface__-->  torch.from_dlpack, cupy.from_dlpack

Order. The producer's stream is honoured: `__dlpack__` is told the session's stream and makes it wait; a `stream` in
`__cuda_array_interface__` is waited for, and so is torch's current stream where its tensors are read directly. An
interface without one promises that the array is ready, or was made on the legacy default stream, for which a session's
own stream waits by itself.

Lifetime. A session on a stream of its own has finished when `run` returns: inputs may be changed or freed at once, and
outputs be read from any stream. A session on the user's stream returns earlier, and everything is in that stream's
order. An output's memory is used for another output once nothing refers to it: work that still reads it then has to be
on the stream that the next call's inputs come from, as it is in a program with one stream, or to be finished.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from engines.runtime.device.cuda import LEGACY_STREAM, CudaStream
from engines.runtime.device.dlpack import CUDA, make_capsule, read_capsule
from specs.errors import InputError, PreflightError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


_TORCH_DTYPES = {
    f"torch.{name}": np.dtype(name)
    for name in ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
}


class DeviceView:
    """Where an input lies: made by `view_device_array`, valid as long as it is kept."""

    __slots__ = ("address", "dtype", "owner", "shape")

    def __init__(self, address: int, dtype: np.dtype[Any], shape: tuple[int, ...], owner: object) -> None:
        self.address, self.dtype, self.shape, self.owner = address, dtype, shape, owner


class DeviceArray:
    """An output that stays on the GPU: row after row, on device 0, until nothing refers to it.

    `torch.from_dlpack(x)`, `cupy.from_dlpack(x)` and a session's `run` take it without a copy, `x.to_numpy()` copies.
    """

    __slots__ = ("_block", "_stream", "dtype", "shape")

    def __init__(self, block: Block, dtype: np.dtype[Any], shape: tuple[int, ...], stream: CudaStream) -> None:
        self._block, self.dtype, self.shape, self._stream = block, dtype, shape, stream

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {list(self.shape)})"

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA, 0)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule for a consumer on `stream` (None and 1: the legacy default stream; -1: it sees to the order)."""
        if copy or dl_device not in (None, (CUDA, 0)):
            raise BufferError("this output is handed over where it is, on GPU 0: copy=False or None")
        if not self._stream.is_own and stream != -1:
            self._stream.hold_up(LEGACY_STREAM if stream is None else stream)
        return make_capsule(self._block.address, self.shape, self.dtype, self._block)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; `stream` is None where the session has waited for the output already."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._block.address, False),
            "strides": None,
            "stream": None if self._stream.is_own else self._stream.handle or LEGACY_STREAM,
        }

    def to_numpy(self) -> Array:
        """A copy on the host."""
        result = np.empty(self.shape, self.dtype)
        self._stream.copy_out_now(result.ctypes.data, self._block.address, self.nbytes)
        return result


class Block:
    """Device memory that goes back to its pool with the last reference."""

    __slots__ = ("_pool", "address", "size_bytes")

    def __init__(self, address: int, size_bytes: int, pool: BlockPool) -> None:
        self.address, self.size_bytes, self._pool = address, size_bytes, pool

    def __del__(self) -> None:
        self._pool.give_back(self.address, self.size_bytes)


class BlockPool:
    """Memory for outputs, lent again once it is given back, so that calls in a row allocate nothing.

    Sizes are rounded up to powers of two: as many heaps as there are magnitudes, whatever shapes come. The lowest
    address goes first, in whatever order they were given back: so a loop whose outputs are its next inputs alternates
    between two sets of places, and with them between two CUDA graphs.
    """

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream
        self._idle: defaultdict[int, list[int]] = defaultdict(list)
        self._closed = False

    def take(self, size_bytes: int) -> Block:
        """At least `size_bytes`, aligned to 256. Raises PreflightError when the GPU is full."""
        size = 1 << max(size_bytes - 1, 255).bit_length()
        idle = self._idle[size]
        if not idle:
            return Block(self._allocate(size), size, self)
        return Block(heapq.heappop(idle), size, self)

    def give_back(self, address: int, size_bytes: int) -> None:
        """Any thread may get here, in the middle of anything, since the last reference may go anywhere."""
        if not self._closed:
            heapq.heappush(self._idle[size_bytes], address)  # in C, on integers: nothing comes between
        elif not sys.is_finalizing():
            self._stream.make_current()
            self._stream.free(address)

    def close(self) -> None:
        """Free what nothing refers to, and the rest as soon as nothing does."""
        self._closed = True
        self.free_idle()

    def free_idle(self) -> None:
        for idle in list(self._idle.values()):
            while idle:
                self._stream.free(idle.pop())

    def _allocate(self, size_bytes: int) -> int:
        try:
            return self._stream.allocate(size_bytes)
        except PreflightError:
            self.free_idle()  # of other sizes
            return self._stream.allocate(size_bytes)


def is_device_array(value: object) -> bool:
    """Whether `value` is an array on a GPU, told by either protocol."""
    if isinstance(value, np.ndarray):
        return False
    try:
        return bool(value.__dlpack_device__()[0] == CUDA)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - whatever another library raises, for want of the method or otherwise
        return "__cuda_array_interface__" in dir(value)  # torch's raises for a tensor that needs a gradient


def view_device_array(name: str, value: Any, stream: CudaStream) -> DeviceView:
    """Where the input `name` lies, ordered before what is put on `stream` from now on.

    Raises:
        InputError: on another device, not row after row, of a dtype that numpy lacks, or not exported by its library.
    """
    if isinstance(value, DeviceArray):
        if not value._stream.is_own:
            value._stream.hold_up(stream.handle)
        return DeviceView(value._block.address, value.dtype, value.shape, value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        view = _view_torch(value, torch, stream)
        if view is not None:
            return view
    if hasattr(value, "__dlpack__"):
        return _view_dlpack(name, value, stream)
    if not hasattr(value, "__cuda_array_interface__"):
        _refuse(name, type(value).__name__, "hand over a numpy array, or an array on the GPU")
    return _view_interface(name, value, stream)


def _view_torch(tensor: Any, torch: Any, stream: CudaStream) -> DeviceView | None:
    """A tensor of torch as DLPack would hand it over, without the stream and the event that torch makes for it.

    None for one that DLPack refuses, or knows more of.
    """
    plain = tensor.is_cuda and not tensor.requires_grad and tensor.is_contiguous()
    if not plain or tensor.device.index != 0 or tensor.is_conj() or tensor.is_neg():
        return None
    dtype = _TORCH_DTYPES.get(str(tensor.dtype))
    if dtype is None:
        return None
    stream.wait_for(torch.cuda.current_stream(0).cuda_stream)
    return DeviceView(tensor.data_ptr(), dtype, tuple(tensor.shape), tensor)


def _view_dlpack(name: str, value: Any, stream: CudaStream) -> DeviceView:
    try:
        capsule = value.__dlpack__(stream=stream.handle or LEGACY_STREAM)
        layout = read_capsule(capsule)
    except Exception as error:  # BufferError, and whatever else its library raises
        raise InputError(
            f"input '{name}' is an array that its library does not hand over",
            got=f"{type(value).__module__}.{type(value).__qualname__}: {error}",
            allowed="an array on GPU 0 that needs no gradient, row after row",
            fix="tensor.detach().contiguous()",
        ) from error
    if layout.device != (CUDA, 0):
        _refuse(name, f"DLPack's device {layout.device[0]}:{layout.device[1]}", "move it there: tensor.to('cuda:0')")
    if layout.dtype is None:
        _refuse(name, "a dtype that numpy does not have", "cast it to the input's dtype first")
    if layout.strides is not None and not _is_packed(layout.shape, layout.strides):
        _refuse(name, f"shape {list(layout.shape)}, strides {list(layout.strides)}", "tensor.contiguous()")
    return DeviceView(layout.address, layout.dtype, layout.shape, capsule)


def _view_interface(name: str, value: Any, stream: CudaStream) -> DeviceView:
    interface = value.__cuda_array_interface__
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides")  # in bytes
    if interface.get("mask") is not None or (
        strides is not None and not _is_packed(shape, tuple(step // dtype.itemsize for step in strides))
    ):
        _refuse(name, f"shape {list(shape)}, strides {strides}", "make it contiguous, without a mask")
    producer = interface.get("stream")
    if producer is not None:
        stream.wait_for(producer)
    return DeviceView(interface["data"][0], dtype, shape, value)


def _is_packed(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _refuse(name: str, got: str, fix: str) -> NoReturn:
    raise InputError(
        f"input '{name}' cannot be taken where it lies",
        got=got,
        allowed="an array on GPU 0, row after row, of the input's dtype",
        fix=fix,
    )
