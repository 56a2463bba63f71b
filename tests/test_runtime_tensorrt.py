"""The TensorRT side of the runtime over a stand-in for TensorRT and for the driver, whose "device" is host memory.

What a real TensorRT 8.6.0 said on an H200 stands in the stand-in's mouth. The engine computes y = 2 a + n.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from engines.runtime import tensorrt as runtime
from engines.runtime.preflight import Candidate
from engines.runtime.shape_ranges import choose_profile
from engines.runtime.tensorrt import TensorRTEngine
from specs.bundle import Graph, IoTensor
from specs.errors import InputError, PreflightError

GRAPH = Graph(
    name="g",
    component="g",
    file="g/model.onnx",
    golden="g/model.golden.npz",
    inputs=(
        IoTensor(name="a", dtype="float32", shape=("batch", 4)),
        IoTensor(name="n", dtype="int64", shape=("batch",)),
    ),
    outputs=(IoTensor(name="y", dtype="float32", shape=("batch", 4)),),
)
CANDIDATE = Candidate(file="g/model.plan", backend="tensorrt", precision="fp16")
PROFILE_REFUSAL = "3: Runtime dimension does not satisfy any optimization profile."
TRUNCATED = "1: [runtime.cpp::parsePlan::315] Error Code 1: Serialization"
LARGEST_BATCH = 8
PROFILES = ((1, 2), (1, LARGEST_BATCH))  # of the batch: usual sizes, all sizes


class Stream:
    """As engines.runtime.cuda.CudaStream; counts what is held and what is done."""

    held: ClassVar[set[int]] = set()
    done: ClassVar[list[str]] = []
    capture_error: ClassVar[PreflightError | None] = None
    handle = 7

    def __init__(self) -> None:
        self._memory: dict[int, Any] = {}
        self._graphs: dict[int, Callable[[], None]] = {}

    def make_current(self) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...

    def allocate(self, size_bytes: int) -> int:
        block = ctypes.create_string_buffer(b"\xff" * size_bytes, size_bytes)
        address = ctypes.addressof(block)
        self._memory[address] = block
        self.held.add(address)
        return address

    allocate_host = allocate

    def free(self, address: int) -> None:
        self.held.remove(address)
        del self._memory[address]

    free_host = free

    def copy_in(self, address: int, host: int, size_bytes: int) -> None:
        ctypes.memmove(address, host, size_bytes)

    def copy_out(self, host: int, address: int, size_bytes: int) -> None:
        ctypes.memmove(host, address, size_bytes)

    def capture(self, enqueue: Callable[[], None]) -> int:
        if self.capture_error is not None:
            raise self.capture_error
        self.done.append("capture")
        self._graphs[len(self._graphs) + 1] = enqueue
        return len(self._graphs)

    def launch(self, graph: int) -> None:
        self.done.append("launch")
        self._graphs[graph]()

    def forget(self, graph: int) -> None:
        self.done.append("forget")
        del self._graphs[graph]


class Context:
    switched: ClassVar[list[int]] = []

    def __init__(self, logger: Any) -> None:
        self.logger, self.shapes, self.addresses = logger, dict[str, tuple[int, ...]](), dict[str, int]()
        self.profile = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.switched.append(index)
        self.profile, self.addresses = index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if shape[0] > PROFILES[self.profile][1]:
            self.logger.log(1, PROFILE_REFUSAL)
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["a"] if name == "y" else self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        batch = self.shapes["a"][0]
        a, n, y = (
            np.frombuffer((ctypes.c_char * (4 * batch * width)).from_address(self.addresses[name]), dtype)
            for name, dtype, width in (("a", np.float32, 4), ("n", np.int32, 1), ("y", np.float32, 4))
        )
        y.reshape(batch, 4)[:] = 2 * a.reshape(batch, 4) + n[:, None]
        return True


class Engine:
    names = ("y", "a", "n")  # 8.6 lists them as it likes
    num_io_tensors = 3
    num_optimization_profiles = len(PROFILES)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        smallest, largest = PROFILES[profile]
        return [(size, 4) if name == "a" else (size,) for size in (smallest, largest, largest)]

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_execution_context(self) -> Context:
        return Context(self.logger)

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


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        __version__="8.6.0",
        ILogger=Logger,
        Runtime=Runtime,
        init_libnvinfer_plugins=lambda logger, namespace: True,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        TensorLocation=SimpleNamespace(HOST="host"),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(runtime, "CudaStream", Stream)
    Stream.held.clear()
    Stream.done.clear()
    monkeypatch.setattr(Stream, "capture_error", None)


@pytest.fixture
def engine(tmp_path: Path) -> TensorRTEngine:
    return open_engine(tmp_path, b"whole")


def open_engine(folder: Path, plan: bytes) -> TensorRTEngine:
    (folder / "model.plan").write_bytes(plan)
    return TensorRTEngine(folder / "model.plan", GRAPH, CANDIDATE, plugins=())


def make_feed(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"a": random.random((batch, 4), np.float32), "n": random.integers(-9, 9, batch)}


def expect(feed: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = (2 * feed["a"] + feed["n"][:, None]).astype(np.float32)
    return result


def run(engine: TensorRTEngine, feed: dict[str, np.ndarray]) -> np.ndarray:
    return engine.execute(["y"], feed)[0]


def test_the_second_call_of_a_shape_is_captured_and_the_rest_are_launched(engine: TensorRTEngine) -> None:
    results = [(feed := make_feed(3, seed), run(engine, feed)) for seed in range(4)]
    for feed, result in results:  # compared at the end: no result may be overwritten by a later call
        assert np.array_equal(result, expect(feed))
    assert Stream.done == ["capture", "launch", "launch", "launch"]


def test_another_shape_drops_the_graph_and_reuses_the_memory(engine: TensorRTEngine) -> None:
    for batch in (4, 4, 2, 4, 4):
        feed = make_feed(batch, batch)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert Stream.done == ["capture", "launch", "forget", "capture", "launch"]
    assert len(Stream.held) == 6  # a, n and y, on the device and on the host


def test_larger_shapes_move_the_buffers(engine: TensorRTEngine) -> None:
    for batch in (1, 8, 1):
        feed = make_feed(batch, batch)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert len(Stream.held) == 6


def test_arrays_that_are_not_contiguous_are_taken(engine: TensorRTEngine) -> None:
    feed = make_feed(6)
    turned = {"a": feed["a"][::-1], "n": feed["n"][::-1]}
    assert np.array_equal(run(engine, turned), expect(feed)[::-1])


def test_integers_that_do_not_fit_are_refused_and_the_session_goes_on(engine: TensorRTEngine) -> None:
    feed = make_feed(2)
    with pytest.raises(InputError) as caught:
        run(engine, {**feed, "n": np.array([1, 1 << 31])})
    assert str(caught.value) == (
        "input 'n' holds a value that the engine's int32 cannot\n"
        "  got:     1 to 2147483648\n"
        "  allowed: -2147483648 to 2147483647\n"
        "  fix:     run the bundle with --backend onnxruntime, or build for TensorRT 10"
    )
    assert np.array_equal(run(engine, feed), expect(feed))
    edge = {**feed, "n": np.array([-(1 << 31), (1 << 31) - 1])}
    assert np.array_equal(run(engine, edge), expect(edge))


def test_the_first_profile_that_fits_is_used(engine: TensorRTEngine) -> None:
    for batch, switched in ((1, []), (2, []), (3, [1]), (8, []), (2, [0])):
        Context.switched.clear()
        feed = make_feed(batch)
        assert np.array_equal(run(engine, feed), expect(feed))
        assert Context.switched == switched


def test_a_profile_that_takes_part_of_the_shapes_is_passed_over() -> None:
    profiles = [{"a": ((1, 4), (2, 4)), "n": ((1,), (2,))}, {"a": ((1, 4), (8, 4)), "n": ((1,), (8,))}]
    assert choose_profile(profiles, {"a": (2, 4), "n": (3,)}) == 1
    assert choose_profile(profiles, {"a": (9, 4), "n": (9,)}) == 0  # none fits: TensorRT says so
    assert choose_profile(profiles, {"a": (4,), "n": (1,)}) == 0


def test_a_shape_outside_the_profile_is_refused_and_the_session_goes_on(engine: TensorRTEngine) -> None:
    feed = make_feed(2)
    for _ in range(2):
        run(engine, feed)
    with pytest.raises(InputError) as caught:
        run(engine, make_feed(9))
    assert str(caught.value) == (f"the engine does not take 'a' in this shape\n  got:     [9, 4]: {PROFILE_REFUSAL}")
    assert np.array_equal(run(engine, feed), expect(feed))


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    engine: TensorRTEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "capture_error", PreflightError("the GPU refused it", got="900: not permitted"))
    for seed in range(3):
        feed = make_feed(2, seed)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert engine.capture_refusal == "900: not permitted" and Stream.done == []


def test_a_refused_engine_repeats_what_tensorrt_said(tmp_path: Path) -> None:
    with pytest.raises(PreflightError) as caught:
        open_engine(tmp_path, b"trunc")
    assert str(caught.value) == (
        "tensorrt 8.6.0 refused the engine\n"
        "  where:   g/model.plan\n"
        f"  got:     {TRUNCATED}\n"
        "  fix:     build it again on this machine: metagen-deploy build BUNDLE"
    )


def test_closing_gives_all_memory_back(engine: TensorRTEngine) -> None:
    for _ in range(3):
        run(engine, make_feed(3))
    engine.close()
    assert not Stream.held and Stream.done[-1] == "forget"
