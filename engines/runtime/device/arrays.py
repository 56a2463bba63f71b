"""An output that stays on the GPU, for whatever library reads it next.

    DeviceArray  --__dlpack__(stream), or __cuda_array_interface__-->  torch.from_dlpack, cupy.from_dlpack

A session on a stream of its own has finished when `run` returns: inputs may be changed or freed at once, and outputs be
read from any stream. A session on the user's stream returns earlier, and everything is in that stream's order. An
output's memory is used for another output once nothing refers to it: work that still reads it then has to be on the
stream that the next call's inputs come from, as it is in a program with one stream, or to be finished.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.device.cuda import LEGACY_STREAM, CudaStream
from engines.runtime.device.dlpack import CUDA, make_capsule
from engines.runtime.device.pool import Block

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


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
