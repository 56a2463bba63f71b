"""The few calls of the CUDA driver that the runtime needs, through ctypes.

The driver library comes with every NVIDIA driver and on every Jetson, so nothing has to be installed and no version
of the CUDA runtime has to be found. The context is the device's primary one, which TensorRT's and torch's own CUDA
runtime use too; it is retained once a process and never given back, as theirs is.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from specs.errors import PreflightError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_CAPTURE_THREAD_LOCAL = 1  # CUstreamCaptureMode: other threads may go on allocating
_EVENT_WITHOUT_TIMING = 2  # CUevent_flags
_OUT_OF_MEMORY = 2  # CUresult
#: The legacy default stream, as the driver, DLPack and __cuda_array_interface__ call it; a handle of 0 means it too.
LEGACY_STREAM = 1

_HANDLE = POINTER(c_void_p)
#: Function -> its parameters. Addresses are written as integers.
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _HANDLE),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (_HANDLE, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGraphInstantiateWithFlags": (_HANDLE, c_void_p, ctypes.c_ulonglong),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
}


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


@cache
def _open_driver() -> tuple[ctypes.CDLL, int]:
    """The driver with its functions declared, and the primary context of device 0."""
    driver = ctypes.CDLL(_LIBRARY)
    for name, parameters in _SIGNATURES.items():
        getattr(driver, name).argtypes = parameters
    device, context = c_int(), c_void_p()
    _check(driver, "cuInit", driver.cuInit(0))
    _check(driver, "cuDeviceGet", driver.cuDeviceGet(ctypes.byref(device), 0))
    retained = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    _check(driver, "cuDevicePrimaryCtxRetain", retained)
    return driver, context.value or 0


class CudaStream:
    """A stream of device 0, and memory copied in its order: one of its own, or the one whose `handle` is given.

    A stream of its own waits for the legacy default stream and that one for it, as CUDA's streams do by default.
    """

    def __init__(self, handle: int | None = None) -> None:
        self._driver, self._context = _open_driver()
        self.make_current()
        self.is_own = handle is None
        self.handle = self._create("cuStreamCreate", 0) if handle is None else handle
        self._event = self._create("cuEventCreate", _EVENT_WITHOUT_TIMING)
        self._linking = threading.Lock()  # of the event, between its record and the wait for it

    def make_current(self) -> None:
        """Bind the context to the calling thread, before anything else there."""
        if code := self._driver.cuCtxSetCurrent(self._context):
            self._refuse("cuCtxSetCurrent", code)

    # ---- memory ----

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory, which the driver aligns to 256 bytes at least."""
        address = c_uint64()
        code = self._driver.cuMemAlloc_v2(ctypes.byref(address), size_bytes)
        if code:
            self._refuse_memory("cuMemAlloc", code, size_bytes)
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def allocate_host(self, size_bytes: int) -> int:
        """Address of new pinned memory of the host, which the GPU copies from and to without a detour."""
        address = c_void_p()
        code = self._driver.cuMemHostAlloc(ctypes.byref(address), size_bytes, 0)
        if code:
            self._refuse_memory("cuMemHostAlloc", code, size_bytes)
        return address.value or 0

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def copy_in(self, address: int, host: int, size_bytes: int) -> None:
        """Host to device; the host memory must live until `synchronize`."""
        self._call("cuMemcpyHtoDAsync_v2", address, host, size_bytes, self.handle)

    def copy_out(self, host: int, address: int, size_bytes: int) -> None:
        """Device to host; the host memory is filled after `synchronize`."""
        self._call("cuMemcpyDtoHAsync_v2", host, address, size_bytes, self.handle)

    def copy_out_now(self, host: int, address: int, size_bytes: int) -> None:
        """Device to host, after what is on this stream; filled on return. Works when the stream is closed."""
        self.make_current()
        if self._event:
            self.synchronize()
        self._call("cuMemcpyDtoH_v2", host, address, size_bytes)

    def copy_across(self, to: int, source: int, size_bytes: int) -> None:
        """Device to device."""
        self._call("cuMemcpyDtoDAsync_v2", to, source, size_bytes, self.handle)

    # ---- order ----

    def wait_for(self, handle: int) -> None:
        """What is put on this stream from now on runs after what is on the stream `handle` by now."""
        legacy = self.is_own and handle in (0, LEGACY_STREAM)  # for which a stream of its own waits by itself
        if handle != self.handle and not legacy:
            self._link(handle, self.handle)

    def hold_up(self, handle: int) -> None:
        """The reverse: what is put on the stream `handle` from now on runs after what is on this stream by now."""
        if handle != self.handle and self._event:  # a closed stream has nothing left on it
            self._link(self.handle, handle)

    def _link(self, first: int, then: int) -> None:
        self.make_current()
        with self._linking:
            self._call("cuEventRecord", self._event, first)
            self._call("cuStreamWaitEvent", then, self._event, 0)

    def synchronize(self) -> None:
        """Wait until everything on this stream is done."""
        if code := self._driver.cuStreamSynchronize(self.handle):
            self._refuse("cuStreamSynchronize", code)

    # ---- graphs ----

    def capture(self, enqueue: Callable[[CudaStream], None]) -> int:
        """What `enqueue` puts on the stream that it is given, as a graph, not run.

        That stream is a fresh one: the legacy default stream, which a user may have handed over, cannot be captured.
        Whatever `enqueue` raises ends the capture first.
        """
        recorder = CudaStream()
        try:
            graph = recorder._record(enqueue)
            executable = c_void_p()
            try:
                self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
            finally:
                self._call("cuGraphDestroy", graph)
            return executable.value or 0
        finally:
            recorder.close()

    def _record(self, enqueue: Callable[[CudaStream], None]) -> int:
        graph = c_void_p()
        self._call("cuStreamBeginCapture_v2", self.handle, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue(self)
        except BaseException:
            self._driver.cuStreamEndCapture(self.handle, ctypes.byref(graph))
            raise
        self._call("cuStreamEndCapture", self.handle, ctypes.byref(graph))
        return graph.value or 0

    def launch(self, graph: int) -> None:
        """Put a captured graph on this stream."""
        if code := self._driver.cuGraphLaunch(graph, self.handle):
            self._refuse("cuGraphLaunch", code)

    def forget(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Wait for what is on it, and destroy the stream if it is this object's own. Memory outlives it."""
        self.synchronize()
        self._call("cuEventDestroy_v2", self._event)
        self._event = 0
        if self.is_own:
            self._call("cuStreamDestroy_v2", self.handle)

    # ---- errors ----

    def _create(self, function: str, flags: int) -> int:
        made = c_void_p()
        self._call(function, ctypes.byref(made), flags)
        return made.value or 0

    def _call(self, function: str, *arguments: object) -> None:
        if code := getattr(self._driver, function)(*arguments):
            self._refuse(function, code)

    def _refuse(self, function: str, code: int) -> NoReturn:
        _check(self._driver, function, code)
        raise AssertionError(code)

    def _refuse_memory(self, function: str, code: int, size_bytes: int) -> NoReturn:
        if code != _OUT_OF_MEMORY:
            self._refuse(function, code)
        free, total = c_size_t(), c_size_t()
        self._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        where = "host has no room left that the GPU can copy from" if function == "cuMemHostAlloc" else "GPU is full"
        raise PreflightError(
            f"the {where}",
            got=f"{_spell_bytes(size_bytes)} asked for, {_spell_bytes(free.value)} of the GPU's "
            f"{_spell_bytes(total.value)} are free",
            fix="run smaller batches, drop outputs that are kept on the GPU, or close other users of it (nvidia-smi)",
        )


def _check(driver: ctypes.CDLL, function: str, code: int) -> None:
    if code:
        text = c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        raise PreflightError(
            f"the GPU refused {function}",
            got=f"{code}: {(text.value or b'unknown error').decode()}",
            fix="look at the GPU and its driver: nvidia-smi, metagen-deploy doctor",
        )


def _spell_bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
