"""The few calls of the CUDA driver that the runtime needs, through ctypes.

The driver library comes with every NVIDIA driver and on every Jetson, so nothing has to be installed and no version
of the CUDA runtime has to be found. Contexts are the device's primary one, which TensorRT's own CUDA runtime uses too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

from specs.errors import PreflightError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_CAPTURE_THREAD_LOCAL = 1  # CUstreamCaptureMode: other threads may go on allocating


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Device 0. `compute_capability` is written as in a manifest, "8.9"."""

    name: str
    compute_capability: str


def find_gpu() -> Gpu | None:
    """The first GPU that the driver shows, or None when there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    driver.cuDeviceGetName(name, len(name), device)
    return Gpu(name=name.value.decode(), compute_capability=f"{major.value}.{minor.value}")


class CudaStream:
    """One stream of device 0, and memory copied in its order. Every call first makes the context current."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(_LIBRARY)
        self._context, self._stream, self._device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.make_current()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return self._stream.value or 0

    def make_current(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def allocate_host(self, size_bytes: int) -> int:
        """Address of new pinned memory of the host, which the GPU copies from and to without a detour."""
        address = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size_bytes), 0)
        return address.value or 0

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def copy_in(self, address: int, host: int, size_bytes: int) -> None:
        """Host to device; the host memory must live until `synchronize`."""
        self._copy("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(host), size_bytes)

    def copy_out(self, host: int, address: int, size_bytes: int) -> None:
        """Device to host; the host memory is filled after `synchronize`."""
        self._copy("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(host), ctypes.c_uint64(address), size_bytes)

    def _copy(self, function: str, to: object, source: object, size_bytes: int) -> None:
        self._call(function, to, source, ctypes.c_size_t(size_bytes), self._stream)

    def capture(self, enqueue: Callable[[], None]) -> int:
        """What `enqueue` puts on this stream as a graph, not run; whatever it raises ends the capture first."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            self._driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
            raise
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), self._stream)

    def forget(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give the stream and the context back; memory must be freed before."""
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            raise PreflightError(
                f"the GPU refused {function}", got=f"{code}: {(text.value or b'unknown error').decode()}"
            )
