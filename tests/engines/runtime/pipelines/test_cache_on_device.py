"""A decoder's cache stays on the GPU: the host loop over the stand-in, against the same step in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.runtime.device.arrays import DeviceArray
from engines.runtime.device.pool import BlockPool
from engines.runtime.executors.fixed_sizes import OpenEngine, SizedEngines
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.graph_session import Choice, GraphSession
from engines.runtime.pipelines.stages.cached_decoder import CachedDecoder
from engines.runtime.pipelines.stages.caches import fit_cache
from engines.runtime.pipelines.stages.sampling import Sampling
from specs.bundle import Graph, IoTensor
from tests.engines.runtime import tensorrt_stand_in as stand_in
from tests.engines.runtime.stand_in_calls import CANDIDATE
from tests.engines.runtime.tensorrt_stand_in import Device, Stream

WORDS, HEADS, WIDTH, MOST_SLOTS = 101, 1, 2, 256
CACHE = ("batch", HEADS, "cache", WIDTH)
STEP_INPUTS = (
    IoTensor(name="token_ids", dtype="int64", shape=("batch", 1)),
    IoTensor(name="lengths", dtype="int64", shape=("batch",)),
    IoTensor(name="past_keys_0", dtype="float32", shape=CACHE),
    IoTensor(name="past_values_0", dtype="float32", shape=CACHE),
)
OUTPUTS = (
    IoTensor(name="logits", dtype="float32", shape=("batch", WORDS)),
    IoTensor(name="keys_0", dtype="float32", shape=CACHE),
    IoTensor(name="values_0", dtype="float32", shape=CACHE),
)
PREFILL_INPUTS = (IoTensor(name="token_ids", dtype="int64", shape=("batch", "tokens")), STEP_INPUTS[1])
DIMS = {"batch": (1, 1, 4), "tokens": (1, 8, 64), "cache": (16, 64, MOST_SLOTS)}
CONFIG = {"num_layers": 1, "vocab_size": WORDS, "prefill": "prefill", "decode": "decode"}


def make_graph(name: str, inputs: tuple[IoTensor, ...]) -> Graph:
    return Graph(name=name, component="d", file=f"d/{name}.onnx", golden="d/x.npz", inputs=inputs, outputs=OUTPUTS)


PREFILL, STEP = make_graph("prefill", PREFILL_INPUTS), make_graph("decode", STEP_INPUTS)


def step(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A decoder whose next token depends on everything in its cache, place by place."""
    keys, values = feed["past_keys_0"].copy(), feed["past_values_0"].copy()
    rows, at = np.arange(len(keys)), feed["lengths"]
    keys[rows, :, at] = feed["token_ids"][:, :, None] + 1
    values[rows, :, at] = at[:, None, None]
    seen = np.arange(keys.shape[2]) <= at[:, None]
    score = ((keys[:, 0, :, 0] * (1 + values[:, 0, :, 1] ** 2)) * seen).sum(1).astype(np.int64)
    logits = np.eye(WORDS, dtype=np.float32)[score % WORDS]
    return {"logits": logits, "keys_0": keys, "values_0": values}


def prefill(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids, lengths = feed["token_ids"], feed["lengths"]
    empty = np.zeros((len(ids), HEADS, ids.shape[1], WIDTH), np.float32)
    made = {"logits": np.zeros((len(ids), WORDS), np.float32), "keys_0": empty, "values_0": empty}
    for place in range(ids.shape[1]):
        past = {"past_keys_0": made["keys_0"], "past_values_0": made["values_0"]}
        new = step({"token_ids": ids[:, [place]], "lengths": np.full(len(ids), place), **past})
        read = (place < lengths)[:, None]
        made = {
            "logits": np.where(read, new["logits"], made["logits"]),
            **{n: np.where(read[:, :, None, None], new[n], made[n]) for n in ("keys_0", "values_0")},
        }
    return made


class StepContext(stand_in.Context):
    """Runs `step` on the addresses that it was given."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        self.changes += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shapes["lengths"][0], WORDS) if name == "logits" else self.shapes[f"past_{name}"]

    def execute_async_v3(self, stream: int) -> bool:
        addresses, shapes, changes = dict(self.addresses), dict(self.shapes), self.changes

        def view(name: str) -> np.ndarray:
            shape = shapes.get(name) or self.get_tensor_shape(name)
            dtype = np.dtype(np.int32 if name in ("token_ids", "lengths") else np.float32)
            size_bytes = int(np.prod(shape)) * dtype.itemsize
            memory = (stand_in.ctypes.c_char * size_bytes).from_address(Device.touch(addresses[name]))
            return np.frombuffer(memory, dtype).reshape(shape)

        def compute() -> None:
            assert self.changes == changes, "this graph's context was changed after it was captured"
            for name, value in step({tensor.name: view(tensor.name) for tensor in STEP_INPUTS}).items():
                view(name)[:] = value

        Device.streams[stream].put(compute)
        return True


class StepEngine(stand_in.Engine):
    names = tuple(tensor.name for tensor in (*OUTPUTS, *STEP_INPUTS))
    num_io_tensors = len(names)
    num_optimization_profiles = 1

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        listed = next(tensor for tensor in STEP_INPUTS if tensor.name == name).shape
        return [tuple(DIMS[size][k] if isinstance(size, str) else size for size in listed) for k in range(3)]

    def create_execution_context_without_device_memory(self) -> StepContext:
        return StepContext(self)

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name in ("logits", "keys_0", "values_0") else "in"

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INT32" if name in ("token_ids", "lengths") else "FLOAT")


@pytest.fixture(autouse=True)
def _step_engine(tensorrt_stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "Engine", StepEngine)


def open_on_host(graph: Graph, function: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]) -> GraphSession:
    def execute(names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        made = function(feed)
        return [made[name] for name in names]

    choice = Choice(graph=graph.name, file=graph.file, backend="onnxruntime", precision="fp32")
    return GraphSession(graph, DIMS, choice=choice, execute=execute, close=lambda: None)


def open_step(folder: Path, *, fixed: Sequence[Mapping[str, int]] = ()) -> GraphSession:
    """The step on the stand-in's GPU, with an engine of its own for each of the sizes `fixed`."""
    (folder / "model.plan").write_bytes(b"whole")
    general = TensorRTEngine(folder / "model.plan", STEP, CANDIDATE, plugins=())
    opened = OpenEngine(execute=general.execute, close=general.close, sizes={}, engine=general)
    faster = []
    for sizes in fixed:
        engine = TensorRTEngine(folder / "model.plan", STEP, CANDIDATE, plugins=(), beside=general)

        def execute(*call: Any, engine: TensorRTEngine = engine, sizes: Mapping[str, int] = sizes) -> list[Any]:
            Device.done.append(f"fixed {sizes['cache']}")
            return engine.execute(*call)

        faster.append(OpenEngine(execute=execute, close=engine.close, sizes=sizes))
    both = SizedEngines(STEP, opened, faster)
    return GraphSession(
        STEP,
        DIMS,
        choice=Choice(graph="decode", file="d/model.plan", backend="tensorrt", precision="fp16"),
        execute=both.execute,
        close=both.close,
        view=general.view,
        allocate=general.allocate,
        fixed_sizes=fixed,
    )


def generate(decode: GraphSession, prompts: Sequence[Sequence[int]], count: int) -> list[tuple[int | None, ...]]:
    decoder = CachedDecoder(CONFIG, {"prefill": open_on_host(PREFILL, prefill), "decode": decode})
    steps = decoder.generate(prompts, max_new_tokens=count, sampling=Sampling(), end_tokens=())
    return list(steps)


def count_cache_copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the caches that are copied between host and device from now on."""
    sizes: list[int] = []
    move, fetch = Stream._move, Stream.copy_out_now
    unit = 16 * HEADS * WIDTH * 4  # no other tensor's size is a multiple of it

    def counted(stream: Stream, to: int, source: int, size_bytes: int) -> None:
        sizes.extend([size_bytes] * (size_bytes % unit == 0))
        move(stream, to, source, size_bytes)

    def counted_now(stream: Stream, host: int, address: int, size_bytes: int) -> None:
        sizes.append(size_bytes)
        fetch(stream, host, address, size_bytes)

    for name in ("copy_in", "copy_out", "copy_across"):
        monkeypatch.setattr(Stream, name, counted)
    monkeypatch.setattr(Stream, "copy_out_now", counted_now)
    return sizes


ONE_ROW = ({"batch": 1, "cache": 200}, {"batch": 1, "cache": 48})
PROMPTS = [[1, 2, 3], [5, 4, 3, 2, 1]]


def test_tokens_are_those_of_the_host_and_the_cache_travels_only_when_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(open_on_host(STEP, step), PROMPTS, 60)
    assert len(set(expected)) > 20  # it does depend on what was read
    copies = count_cache_copies(monkeypatch)
    assert generate(open_step(tmp_path), PROMPTS, 60) == expected
    into_32, out_of_32, into_64 = 32, 32, 64
    slots = [size // (len(PROMPTS) * HEADS * WIDTH * 4) for size in copies]
    assert slots == [into_32] * 2 + [out_of_32] * 2 + [into_64] * 2
    # 32 slots: one call with the cache of the host, then two places in turn; 64 slots the same
    assert Device.done.count("capture") == 4


def test_an_engine_of_one_size_is_used_from_the_first_step_on(tmp_path: Path) -> None:
    expected = generate(open_on_host(STEP, step), [[1, 2, 3]], 60)
    decode = open_step(tmp_path, fixed=(*ONE_ROW, {"batch": 2, "cache": 16}))
    assert generate(decode, [[1, 2, 3]], 60) == expected
    assert Device.done.count("fixed 48") == 45 and Device.done.count("fixed 200") == 14


def test_engines_of_other_batches_change_nothing(tmp_path: Path) -> None:
    expected = generate(open_on_host(STEP, step), PROMPTS, 20)
    assert generate(open_step(tmp_path, fixed=({"batch": 1, "cache": 48},)), PROMPTS, 20) == expected
    assert "fixed 48" not in Device.done


def test_what_is_not_kept_comes_to_the_host(tmp_path: Path) -> None:
    decode = open_step(tmp_path)
    cache = np.zeros((1, HEADS, 32, WIDTH), np.float32)
    feed = {"token_ids": np.ones((1, 1), np.int64), "lengths": np.zeros(1, np.int64)}
    feed |= {"past_keys_0": cache, "past_values_0": cache}
    wanted = step(feed)
    for keep in (None, (), ("keys_0",), ("values_0", "logits"), ("keys_0",)):
        got: dict[str, Any] = decode.run(feed, keep=keep)
        assert {name for name, value in got.items() if isinstance(value, DeviceArray)} == set(keep or ())
        for name, value in got.items():
            assert np.array_equal(value.to_numpy() if name in (keep or ()) else value, wanted[name])
    kept = decode.run(feed, keep=("keys_0", "values_0"))
    again = {**feed, "lengths": np.ones(1, np.int64), **{f"past_{n}": kept[n] for n in ("keys_0", "values_0")}}
    assert isinstance(decode.run(again)["logits"], DeviceArray)  # an input on the GPU: all outputs stay
    assert isinstance(decode.run(again, keep=())["logits"], np.ndarray)


def test_a_backend_of_the_host_keeps_nothing() -> None:
    cache = np.zeros((1, HEADS, 32, WIDTH), np.float32)
    feed = {"token_ids": np.ones((1, 1), np.int64), "lengths": np.zeros(1, np.int64)}
    got = open_on_host(STEP, step).run({**feed, "past_keys_0": cache, "past_values_0": cache}, keep=("keys_0",))
    assert all(isinstance(value, np.ndarray) for value in got.values())


def test_an_output_that_is_not_there_cannot_be_kept(tmp_path: Path) -> None:
    cache = np.zeros((1, HEADS, 32, WIDTH), np.float32)
    feed = {"token_ids": np.ones((1, 1), np.int64), "lengths": np.zeros(1, np.int64)}
    with pytest.raises(Exception, match="keys_1"):
        open_step(tmp_path).run({**feed, "past_keys_0": cache, "past_values_0": cache}, keep=("keys_1",))


def test_places_alternate_whatever_order_they_are_given_back_in() -> None:
    pool = BlockPool(Stream())  # type: ignore[arg-type]  # the stand-in's
    first, second = [pool.take(1000) for _ in range(3)], [pool.take(1000) for _ in range(3)]
    places = [[block.address for block in blocks] for blocks in (first, second)]
    for order in ((2, 0, 1), (0, 1, 2), (1, 2, 0)):
        for blocks, expected in ((first, places[0]), (second, places[1])):
            for index in order:
                blocks[index] = None  # type: ignore[call-overload]
            blocks[:] = [pool.take(1000) for _ in range(3)]
            assert sorted(block.address for block in blocks) == sorted(expected)
            assert [block.address for block in blocks] == sorted(expected)


def test_a_cache_takes_the_smallest_engine_that_has_room(tmp_path: Path) -> None:
    decode = open_step(tmp_path, fixed=(*ONE_ROW, {"batch": 3, "cache": 33}))
    for rows, held, slots, expected in (
        (1, 8, 9, 48),
        (1, 48, 49, 200),
        (1, 200, 201, 256),
        (3, 8, 9, 33),
        (2, 8, 9, 32),
    ):
        results = {"keys_0": np.ones((rows, HEADS, held, WIDTH), np.float32)}
        past = fit_cache(results, ["keys_0"], decode, slots=slots, low=16, high=MOST_SLOTS)["past_keys_0"]
        assert past.shape == (rows, HEADS, expected, WIDTH)
        assert past[:, :, :held].all() and not past[:, :, held:].any()
