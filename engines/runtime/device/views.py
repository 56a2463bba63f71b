"""Another library's array on the GPU as an input, taken where it lies.

    torch, cupy, JAX, ...  --__dlpack__(stream), or __cuda_array_interface__-->  DeviceView   address, dtype, shape

The producer's stream is honoured: `__dlpack__` is told the session's stream and makes it wait; a `stream` in
`__cuda_array_interface__` is waited for, and so is torch's current stream where its tensors are read directly. An
interface without one promises that the array is ready, or was made on the legacy default stream, for which a session's
own stream waits by itself.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import numpy as np

from engines.runtime.device.arrays import DeviceArray
from engines.runtime.device.cuda import LEGACY_STREAM, CudaStream
from engines.runtime.device.dlpack import CUDA, read_capsule
from specs.errors import InputError

_TORCH_DTYPES = {
    f"torch.{name}": np.dtype(name)
    for name in ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
}


class DeviceView:
    """Where an input lies: made by `view_device_array`, valid as long as it is kept."""

    __slots__ = ("address", "dtype", "owner", "shape")

    def __init__(self, address: int, dtype: np.dtype[Any], shape: tuple[int, ...], owner: object) -> None:
        self.address, self.dtype, self.shape, self.owner = address, dtype, shape, owner


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
