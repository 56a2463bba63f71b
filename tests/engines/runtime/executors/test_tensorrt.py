"""The TensorRT side of the runtime over a stand-in for TensorRT and for the driver (`tensorrt_stand_in`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.runtime.executors.shape_ranges import choose_profile
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.executors.tensorrt_contexts import MOST_CONTEXTS
from engines.runtime.preflight import Candidate
from specs.errors import InputError, PreflightError
from tests.engines.runtime.stand_in_calls import CANDIDATE, GRAPH, expect, make_feed
from tests.engines.runtime.tensorrt_stand_in import MODULE, PROFILE_REFUSAL, TRUNCATED, Context, Device, Engine

pytestmark = pytest.mark.usefixtures("tensorrt_stand_in")


@pytest.fixture
def engine(tmp_path: Path) -> TensorRTEngine:
    return open_engine(tmp_path, b"whole")


def open_engine(folder: Path, plan: bytes, candidate: Candidate = CANDIDATE) -> TensorRTEngine:
    (folder / "model.plan").write_bytes(plan)
    return TensorRTEngine(folder / "model.plan", GRAPH, candidate, plugins=())


def run(engine: TensorRTEngine, feed: dict[str, np.ndarray]) -> np.ndarray:
    return engine.execute(["y"], feed)[0]


def count(what: str) -> int:
    return Device.done.count(what)


def test_the_second_call_of_a_shape_is_captured_and_the_rest_are_launched(engine: TensorRTEngine) -> None:
    results = [(feed := make_feed(3, seed), run(engine, feed)) for seed in range(4)]
    for feed, result in results:  # compared at the end: no result may be overwritten by a later call
        assert np.array_equal(result, expect(feed))
    assert [what for what in Device.done if what != "wait"] == ["capture", "launch", "launch", "launch"]


def test_several_shapes_keep_their_graphs(engine: TensorRTEngine) -> None:
    shapes = (8, 5, 2, 7)
    for _ in range(3):
        for batch in shapes:
            feed = make_feed(batch, batch)
            assert np.array_equal(run(engine, feed), expect(feed))
    assert engine.num_graphs == len(shapes) == count("capture") and count("launch") == 2 * len(shapes)
    assert count("forget") == 0


def test_more_shapes_than_graphs_are_kept_drop_the_oldest(engine: TensorRTEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(engine._contexts, "_most", 2)
    for batch in (8, 8, 7, 7, 6, 6, 8, 8):
        feed = make_feed(batch, batch)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert engine.num_graphs == 2 and count("capture") == 4 and count("forget") == 2
    assert MOST_CONTEXTS < 32  # what bounds them by default


def test_an_engine_of_8_6_that_shares_no_profile_has_one_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one crashes when it is asked for more."""
    monkeypatch.setattr(Device, "profile_sharing", False)
    engine = open_engine(tmp_path, b"whole", replace(CANDIDATE, shares_profiles=False))
    for batch in (8, 8, 2, 2, 2, 1, 1, 2, 2, 5, 5):
        feed = make_feed(batch, batch)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert engine.num_graphs == 1 and count("capture") == 5


def test_later_versions_lend_the_working_memory_by_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10.1 and later, as their bindings name it; not run with them."""
    lent: list[int] = []

    def lend(context: Context, memory: int, size: int) -> None:
        context.device_memory = memory
        lent.append(size)

    monkeypatch.setattr(MODULE, "ExecutionContextAllocationStrategy", SimpleNamespace(USER_MANAGED=2), raising=False)
    monkeypatch.setattr(Engine, "create_execution_context", lambda engine, strategy: Context(engine), raising=False)
    monkeypatch.setattr(Engine, "device_memory_size_v2", 2000, raising=False)
    monkeypatch.delattr(Engine, "create_execution_context_without_device_memory")
    monkeypatch.delattr(Engine, "device_memory_size")
    monkeypatch.setattr(Context, "set_device_memory", lend, raising=False)
    engine = open_engine(tmp_path, b"whole")
    for batch in (3, 3, 2, 2):
        feed = make_feed(batch, batch)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert lent == [2000, 2000] and engine.num_graphs == 2


def test_calls_in_a_row_allocate_nothing(engine: TensorRTEngine) -> None:
    feed = make_feed(4)
    run(engine, feed)
    held = set(Device.held)
    for batch in (4, 3, 2, 4):
        for _ in range(3):
            run(engine, make_feed(batch))
    assert set(Device.held) == held
    assert len(held) == 7  # a, n and y, on the device and on the host; the working memory, which all contexts share


def test_larger_shapes_move_the_buffers(engine: TensorRTEngine) -> None:
    for batch in (1, 1, 8, 1, 1, 8, 8):
        feed = make_feed(batch, batch)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert len(Device.held) == 7


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
    for batch, profile in ((1, 0), (2, 0), (3, 1), (8, 1), (2, 0)):
        feed = make_feed(batch)
        assert np.array_equal(run(engine, feed), expect(feed))
        assert max(engine._contexts._calls, key=lambda call: call.used).profile == profile


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
    assert str(caught.value) == (
        "the engine does not take 'a' in this shape\n"
        f"  got:     [9, 4]: {PROFILE_REFUSAL}\n"
        "  allowed: [1, 4] to [2, 4] or [1, 4] to [8, 4]\n"
        "  fix:     keep to these sizes, or build the bundle with wider ranges: --dim at export"
    )
    assert np.array_equal(run(engine, feed), expect(feed))


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    engine: TensorRTEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "capture_error", PreflightError("the GPU refused it", got="900: not permitted"))
    for seed in range(3):
        feed = make_feed(2, seed)
        assert np.array_equal(run(engine, feed), expect(feed))
    assert engine.capture_refusal == "900: not permitted" and not count("launch")


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
    assert not Device.held and count("forget") == 1


def test_a_full_gpu_is_said_and_the_session_goes_on(engine: TensorRTEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in (2, 2, 2):
        run(engine, make_feed(batch))
    monkeypatch.setattr(Device, "free_bytes", 4 * 4 * 2)
    for _ in range(2):
        with pytest.raises(PreflightError, match="the GPU is full"):
            run(engine, make_feed(8))
        for batch in (2, 1, 2, 2):  # their buffers went when larger ones were wanted, and are made again
            feed = make_feed(batch, batch)
            assert np.array_equal(run(engine, feed), expect(feed))
