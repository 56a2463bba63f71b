"""TensorRT's execution contexts: a bounded number, each set to one call, with that call's CUDA graph.

A captured graph is bound to its context's shapes and addresses, and TensorRT leaves it undefined what a graph does once
its context has been changed. So every call that is repeated keeps a context to itself (TensorRT's own advice), and all
of them compute in one piece of device memory, since they never run at the same time. When all are taken, the one that
was idle for longest is set to the new call and loses its graph.

An engine of TensorRT 8 that was built without profile sharing keeps to one context and so to one graph: asked for a
second one in the same profile, 8.6.0 crashed its process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.runtime.device.cuda import CudaStream
from specs.errors import InputError, PreflightError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

    Key = tuple[object, ...]

#: Graphs kept at once. A loop over device arrays takes two a shape: its outputs alternate between two places.
MOST_CONTEXTS = 8


class Call:
    """One context and what it is set to. `key` is None while it is set to nothing."""

    __slots__ = ("context", "copies_in", "copies_out", "graph", "has_run", "key", "profile", "results", "shapes",
                 "staged", "used")  # fmt: skip

    def __init__(self, context: Any) -> None:
        self.context, self.profile = context, int(context.active_optimization_profile)
        self.key: Key | None = None
        self.shapes: tuple[tuple[int, ...], ...] | None = None
        self.graph, self.has_run, self.used = 0, False, 0
        self.staged: list[tuple[int, Array]] = []  # which inputs the host copies, and into which pinned memory
        self.results: dict[str, Array] = {}  # outputs in pinned memory
        self.copies_in: list[tuple[str, int, int, int]] = []  # method of the stream, to, from, bytes
        self.copies_out: list[tuple[str, int, int, int]] = []

    def enqueue(self, stream: CudaStream) -> bool:
        """Put copies and execution on `stream`; False where TensorRT refuses."""
        for method, to, source, size_bytes in self.copies_in:
            getattr(stream, method)(to, source, size_bytes)
        if not self.context.execute_async_v3(stream.handle):
            return False
        for method, to, source, size_bytes in self.copies_out:
            getattr(stream, method)(to, source, size_bytes)
        return True


class Contexts:
    """The contexts of one engine, on one stream. Not safe for threads: the engine's lock serialises calls.

    Raises:
        PreflightError: the GPU has no room for the engine's working memory.
    """

    def __init__(self, trt: Any, engine: Any, logger: Any, stream: CudaStream, *, several: bool) -> None:
        self._trt, self._engine, self._logger, self._stream = trt, engine, logger, stream
        self._memory_bytes = read_memory_bytes(engine)
        self._memory = stream.allocate(max(self._memory_bytes, 1))
        self._most, self._clock = MOST_CONTEXTS if several else 1, 0
        self._calls: list[Call] = []
        self._by_key: dict[Key, Call] = {}
        first = self._create()
        if first is None:
            stream.free(self._memory)
            raise PreflightError(
                "TensorRT made no execution context",
                got=logger.take(),
                fix="close other users of the GPU (nvidia-smi), or build with smaller ranges: --dim at export",
            )
        self._calls.append(first)

    @property
    def num_graphs(self) -> int:
        return sum(call.graph != 0 for call in self._calls)

    def find(self, key: Key) -> Call | None:
        """The context that is set to `key`."""
        call = self._by_key.get(key)
        if call is not None:
            self._clock += 1
            call.used = self._clock
        return call

    def choose(self, profile: int) -> Call:
        """A context in this optimisation profile that is set to nothing: an idle one, a new one, or the oldest.

        Raises:
            InputError: TensorRT refuses the profile.
        """
        idle = [call for call in self._calls if call.key is None]
        call = min(idle, key=lambda call: call.profile != profile) if idle else self._add()
        if call is None:
            call = min(self._calls, key=lambda call: call.used)
            self.forget(call)
        if call.profile != profile:
            if not call.context.set_optimization_profile_async(profile, self._stream.handle):
                raise InputError(
                    "TensorRT could not change to another optimisation profile",
                    got=self._logger.take(),
                    fix="open the session again",
                )
            self._stream.synchronize()
            call.profile, call.shapes = profile, None
        return call

    def assign(self, call: Call, key: Key) -> None:
        """`call` is set up for `key` from now on."""
        self._clock += 1
        call.key, call.used, call.has_run = key, self._clock, False
        self._by_key[key] = call

    def forget(self, call: Call) -> None:
        """Set a context to nothing; its graph goes."""
        if call.key is not None:
            del self._by_key[call.key]
            call.key = None
        if call.graph:
            self._stream.forget(call.graph)
            call.graph = 0

    def forget_others(self, kept: Call | None) -> None:
        """Set every context but one to nothing."""
        for call in self._calls:
            if call is not kept:
                self.forget(call)

    def close(self) -> None:
        self.forget_others(None)
        self._calls.clear()
        self._stream.free(self._memory)

    def _add(self) -> Call | None:
        """One context more, if there may be one and TensorRT makes it."""
        if len(self._calls) >= self._most:
            return None
        call = self._create()
        if call is None:  # the host or the GPU is full: those that are there go on
            self._logger.take()
            self._most = len(self._calls)
            return None
        self._calls.append(call)
        return call

    def _create(self) -> Call | None:
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if strategies is not None:  # from 10.0 on
            context = self._engine.create_execution_context(strategies.USER_MANAGED)
        else:
            context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            return None
        if hasattr(context, "set_device_memory"):  # from 10.1 on
            context.set_device_memory(self._memory, self._memory_bytes)
        else:
            context.device_memory = self._memory
        return Call(context)


def read_memory_bytes(engine: Any) -> int:
    """Working memory of a context, for the largest sizes of any profile. The first name is 10.1's; 11 has it alone."""
    return int(
        getattr(engine, "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size")
    )
