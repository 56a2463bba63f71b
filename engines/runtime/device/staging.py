"""The runtime's own memory for inputs and outputs: a buffer on the device and a pinned one on the host for each tensor.

Both grow when a shape needs more and are reused otherwise. `PinnedMemory` is lent to the user: what is
filled there needs no copy into the pinned buffer first.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.device.cuda import CudaStream

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


#: Threads that copy one large input, and what is worth waking one for.
_COPIERS = min(4, os.cpu_count() or 1)
_LEAST_PART_BYTES = 1 << 20


class Staging:
    """Buffers by the tensor's name. `moved` says that one was replaced since it was last set to False."""

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream
        self._device: dict[str, tuple[int, int]] = {}  # name -> address, capacity in bytes
        self._host: dict[str, tuple[int, int]] = {}
        self.moved = False

    def reserve_device(self, name: str, size_bytes: int) -> int:
        """Address of at least `size_bytes` on the device. Raises PreflightError when the GPU is full."""
        address, capacity = self._device.get(name, (0, 0))
        if capacity < size_bytes or not address:
            if address:
                self.moved = True
                del self._device[name]
                self._stream.synchronize()
                self._stream.free(address)
            address = self._stream.allocate(max(size_bytes, 1))
            self._device[name] = (address, size_bytes)
        return address

    def reserve_host(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The pinned buffer as an array of this shape."""
        size_bytes = math.prod(shape) * dtype.itemsize
        address, capacity = self._host.get(name, (0, 0))
        if capacity < size_bytes or not address:
            if address:
                self.moved = True
                del self._host[name]
                self._stream.synchronize()
                self._stream.free_host(address)
            address = self._stream.allocate_host(max(size_bytes, 1))
            self._host[name] = (address, size_bytes)
        return view_memory(address, shape, dtype)

    def close(self) -> None:
        for address, _ in self._device.values():
            self._stream.free(address)
        for address, _ in self._host.values():
            self._stream.free_host(address)
        self._device.clear()
        self._host.clear()


class PinnedMemory:
    """Pinned memory that numpy sees; freed with the last array over it."""

    def __init__(self, stream: CudaStream, shape: tuple[int, ...], dtype: np.dtype[Any], known: set[int]) -> None:
        self._stream, self._known = stream, known
        self._address = stream.allocate_host(max(math.prod(shape) * dtype.itemsize, 1))
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (self._address, False)}
        known.add(self._address)

    def __del__(self) -> None:
        if hasattr(self, "_address") and not sys.is_finalizing():
            self._known.discard(self._address)
            self._stream.make_current()
            self._stream.free_host(self._address)


def copy_into(view: Array, value: Array) -> None:
    """Copy `value` to pinned memory of its shape, narrowing integers; large ones by several threads.

    One core copies less in a second than the bus to the GPU carries.
    """
    parts = min(_COPIERS, len(view), view.nbytes // _LEAST_PART_BYTES) if view.ndim else 1
    if parts < 2:
        np.copyto(view, value, casting="same_kind")
        return
    edges = [len(view) * part // parts for part in range(parts + 1)]
    pairs = [(view[start:end], value[start:end]) for start, end in itertools.pairwise(edges)]
    others = [_get_copiers().submit(np.copyto, to, part, casting="same_kind") for to, part in pairs[1:]]
    np.copyto(*pairs[0], casting="same_kind")
    for other in others:
        other.result()


@cache
def _get_copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_COPIERS - 1, thread_name_prefix="copy-to-pinned")


def view_memory(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array over memory that somebody else keeps."""
    count = math.prod(shape)
    memory = (ctypes.c_char * max(count * dtype.itemsize, 1)).from_address(address)
    return np.frombuffer(memoryview(memory), dtype, count).reshape(shape)
