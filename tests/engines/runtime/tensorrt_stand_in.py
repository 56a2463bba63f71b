"""A stand-in for TensorRT and for the CUDA driver, whose "device" is memory of the host. y = 2 a + n.

What a real TensorRT 8.6.0 said on an H200 stands in its mouth. It is strict where the real one leaves a program
undefined: a freed address, a graph whose context was changed after it was captured, and a context without working
memory are assertion errors.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from specs.errors import PreflightError

PROFILE_REFUSAL = "3: Runtime dimension does not satisfy any optimization profile."
TRUNCATED = "1: [runtime.cpp::parsePlan::315] Error Code 1: Serialization"
LARGEST_BATCH = 8
PROFILES = ((1, 2), (1, LARGEST_BATCH))  # of the batch: usual sizes, all sizes
WORKING_BYTES = 1000


class Device:
    """What is allocated, and what was done."""

    held: ClassVar[dict[int, Any]] = {}  # address -> buffer
    graveyard: ClassVar[list[Any]] = []  # freed memory stays mapped, so that its use is found instead of crashing
    done: ClassVar[list[str]] = []
    ordered: ClassVar[list[tuple[int, int]]] = []  # (a stream, the one that it waits for)
    streams: ClassVar[dict[int, Stream]] = {}
    capture_error: ClassVar[PreflightError | None] = None
    free_bytes: ClassVar[int] = 1 << 40
    profile_sharing: ClassVar[bool] = True

    @classmethod
    def reset(cls) -> None:
        for held in (cls.held, cls.graveyard, cls.done, cls.ordered, cls.streams):
            held.clear()
        cls.capture_error, cls.free_bytes, cls.profile_sharing = None, 1 << 40, True

    @classmethod
    def make_memory(cls, size_bytes: int, *, shift: int = 0) -> int:
        """An address aligned to 256 bytes, and `shift` more."""
        if size_bytes > cls.free_bytes:
            raise PreflightError("the GPU is full", got=f"{size_bytes} asked for")
        block = ctypes.create_string_buffer(b"\xff" * (size_bytes + 512), size_bytes + 512)
        address = (ctypes.addressof(block) + 255) // 256 * 256 + shift
        cls.held[address] = block
        return address

    @classmethod
    def touch(cls, address: int) -> int:
        """The address, which must be in memory that is held."""
        for block in cls.held.values():
            if 0 <= address - ctypes.addressof(block) < len(block):
                return address
        raise AssertionError(f"{address:#x} is not allocated")


class Stream:
    """As engines.runtime.device.cuda.CudaStream."""

    def __init__(self, handle: int | None = None) -> None:
        self.is_own = handle is None
        self.handle = 100 + len(Device.streams) if handle is None else handle
        self.operations: list[Callable[[], None]] | None = None  # while this stream is captured
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        Device.streams[self.handle] = self

    def make_current(self) -> None: ...

    def synchronize(self) -> None:
        Device.done.append("wait")

    def close(self) -> None: ...

    def allocate(self, size_bytes: int) -> int:
        return Device.make_memory(size_bytes)

    allocate_host = allocate

    def free(self, address: int) -> None:
        Device.graveyard.append(Device.held.pop(address))

    free_host = free

    def _move(self, to: int, source: int, size_bytes: int) -> None:
        self.put(lambda: ctypes.memmove(Device.touch(to), Device.touch(source), size_bytes))

    copy_in = copy_out = copy_across = _move

    def copy_out_now(self, host: int, address: int, size_bytes: int) -> None:
        ctypes.memmove(host, Device.touch(address), size_bytes)

    def put(self, operation: Callable[[], Any]) -> None:
        if self.operations is None:
            operation()
        else:
            self.operations.append(operation)

    def wait_for(self, handle: int) -> None:
        Device.ordered.append((self.handle, handle))

    def hold_up(self, handle: int) -> None:
        Device.ordered.append((handle, self.handle))

    def capture(self, enqueue: Callable[[Stream], None]) -> int:
        if Device.capture_error is not None:
            raise Device.capture_error
        Device.done.append("capture")
        recorder = Stream()
        recorder.operations = []
        enqueue(recorder)
        self._graphs[number := len(Device.done)] = recorder.operations
        return number

    def launch(self, graph: int) -> None:
        Device.done.append("launch")
        for operation in self._graphs[graph]:
            operation()

    def forget(self, graph: int) -> None:
        Device.done.append("forget")
        del self._graphs[graph]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()
        self.device_memory: int | None = None
        self.changes = 0
        assert Device.profile_sharing or not engine.contexts, "8.6.0 crashes when there are two in one profile"
        self.active_optimization_profile = 0
        engine.contexts.add(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active_optimization_profile, self.addresses = index, {}
        self.changes += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if shape[0] > PROFILES[self.active_optimization_profile][1]:
            self.engine.logger.log(1, PROFILE_REFUSAL)
            return False
        self.shapes[name] = shape
        self.changes += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["a"] if name == "y" else self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        assert address % 256 == 0, "TensorRT wants addresses aligned to 256 bytes"
        self.addresses[name] = address
        self.changes += 1

    def execute_async_v3(self, stream: int) -> bool:
        Device.touch(self.device_memory or 0)
        changes, batch, addresses = self.changes, self.shapes["a"][0], dict(self.addresses)

        def compute() -> None:
            assert self.changes == changes, "this graph's context was changed after it was captured"
            a, n, y = (
                np.frombuffer((ctypes.c_char * (4 * batch * width)).from_address(Device.touch(addresses[name])), dtype)
                for name, dtype, width in (("a", np.float32, 4), ("n", np.int32, 1), ("y", np.float32, 4))
            )
            y.reshape(batch, 4)[:] = 2 * a.reshape(batch, 4) + n[:, None]

        Device.streams[stream].put(compute)
        return True


class Engine:
    names = ("y", "a", "n")  # 8.6 lists them as it likes
    num_io_tensors = 3
    num_optimization_profiles = len(PROFILES)
    device_memory_size = WORKING_BYTES

    def __init__(self, logger: Any) -> None:
        self.logger, self.contexts = logger, weakref.WeakSet[Context]()

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        smallest, largest = PROFILES[profile]
        return [(size, 4) if name == "a" else (size,) for size in (smallest, largest, largest)]

    def create_execution_context_without_device_memory(self) -> Context:
        return Context(self)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "y" else "in"

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INT32" if name == "n" else "FLOAT")


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if plan == b"whole":
            return Engine(self.logger)
        self.logger.log(1, TRUNCATED)
        return None


class Logger:
    Severity = SimpleNamespace(ERROR=1, WARNING=2)

    def __init__(self) -> None: ...


MODULE = SimpleNamespace(
    __version__="8.6.0",
    ILogger=Logger,
    Runtime=Runtime,
    init_libnvinfer_plugins=lambda logger, namespace: True,
    TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
    TensorLocation=SimpleNamespace(HOST="host"),
)
