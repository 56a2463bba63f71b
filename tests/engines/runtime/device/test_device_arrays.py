"""Arrays on the GPU as inputs and outputs, over the stand-in whose device is memory of the host."""

from __future__ import annotations

import gc
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from engines.runtime.device import dlpack
from engines.runtime.device.arrays import DeviceArray
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.graph_session import Choice, GraphSession
from specs.errors import InputError, ParityError, PreflightError
from tests.engines.runtime.stand_in_calls import (
    CANDIDATE,
    GRAPH,
    Interface,
    OnDevice,
    expect,
    make_feed,
    narrow,
    open_session,
)
from tests.engines.runtime.tensorrt_stand_in import Device, Stream

pytestmark = pytest.mark.usefixtures("tensorrt_stand_in")


def test_inputs_on_the_gpu_are_read_where_they_lie_and_outputs_stay_there(session: GraphSession) -> None:
    feed = make_feed(3)
    given = narrow(feed)
    held = len(Device.held)
    for seed in range(6):
        feed = make_feed(3, seed)
        given["a"].write(feed["a"])
        given["n"].write(feed["n"].astype(np.int32))
        result = session.run(given)["y"]
        assert isinstance(result, DeviceArray) and result.shape == (3, 4) and result.dtype == np.float32
        assert np.array_equal(result.to_numpy(), expect(feed))
    assert len(Device.held) == held + 2  # two places for the output, in turn; no buffer for an input
    assert Device.done.count("capture") == 2 and Device.done.count("launch") == 4
    assert given["a"].streams == [100] * 6  # the session's stream, which the producer makes wait


def test_the_interface_without_dlpack_is_taken_and_its_stream_waited_for(session: GraphSession) -> None:
    feed = make_feed(2)
    given = {"a": Interface(narrow(feed)["a"], stream=33), "n": feed["n"]}
    assert np.array_equal(session.run(given)["y"].to_numpy(), expect(feed))
    assert Device.ordered == [(100, 33)]


def test_host_and_device_arrays_may_be_mixed(session: GraphSession) -> None:
    for seed in range(4):
        feed = make_feed(2, seed)
        given = {"a": feed["a"][::-1], "n": narrow(feed)["n"]}
        expected = expect({"a": feed["a"][::-1], "n": feed["n"]})
        assert np.array_equal(session.run(given)["y"].to_numpy(), expected)


def test_an_address_that_tensorrt_does_not_take_costs_one_copy(session: GraphSession) -> None:
    feed = make_feed(2)
    given = {"a": OnDevice(feed["a"], shift=16), "n": OnDevice(feed["n"].astype(np.int32))}
    for _ in range(3):
        assert np.array_equal(session.run(given)["y"].to_numpy(), expect(feed))


def test_an_output_is_an_input_of_the_next_call(session: GraphSession) -> None:
    feed = make_feed(2)
    given: dict[str, Any] = dict(narrow(feed))
    y = feed["a"]
    for _ in range(5):
        given["a"] = session.run(given)["y"]
        y = expect({"a": y, "n": feed["n"]})
    assert np.array_equal(given["a"].to_numpy(), y)


def test_outputs_that_are_kept_are_not_overwritten(session: GraphSession) -> None:
    kept = []
    for seed in range(12):
        feed = make_feed(2, seed)
        kept.append((feed, session.run(narrow(feed))["y"]))
    for feed, result in kept:
        assert np.array_equal(result.to_numpy(), expect(feed))


def test_a_consumer_by_dlpack_keeps_the_memory(session: GraphSession, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = make_feed(2)
    given = narrow(feed)
    result = session.run(given)["y"]
    monkeypatch.setattr(dlpack, "CUDA", dlpack.CPU)  # torch without CUDA takes this memory for the host's, as it is
    tensor = torch.from_dlpack(result.__dlpack__())
    monkeypatch.undo()
    del result
    gc.collect()
    address = tensor.data_ptr()
    others = [session.run(given)["y"] for _ in range(3)]
    assert np.array_equal(tensor.numpy(), expect(feed))
    assert address not in [other._block.address for other in others]
    del tensor
    gc.collect()
    assert session.run(given)["y"]._block.address == address


def test_outputs_outlive_the_session(session: GraphSession) -> None:
    feed = make_feed(2)
    given = narrow(feed)
    result = session.run(given)["y"]
    session.close()
    assert np.array_equal(result.to_numpy(), expect(feed))
    for inputs in (feed, given):
        with pytest.raises(InputError, match="this session is closed"):
            session.run(inputs)
    del result, given, inputs
    gc.collect()
    assert len(Device.held) == 2  # the two inputs of this test, which are never freed


def test_on_the_users_stream_nothing_is_waited_for(tmp_path: Path) -> None:
    session = open_session(tmp_path, stream=55)
    Stream(55)
    given = narrow(make_feed(2))
    result = session.run(given)["y"]
    assert "wait" not in Device.done and given["a"].streams == [55]
    result.__dlpack__(stream=77)
    result.__dlpack__(stream=-1)
    assert Device.ordered == [(77, 55)]
    assert result.__cuda_array_interface__["stream"] == 55


def test_the_pinned_buffer_is_not_written_while_a_call_may_still_read_it(tmp_path: Path) -> None:
    session = open_session(tmp_path, stream=0)
    Stream(0)
    feed = make_feed(2)
    given = {"a": feed["a"], "n": narrow(feed)["n"]}
    session.run(given)
    assert "wait" not in Device.done
    session.run(given)
    Device.done.clear()
    session.run(given)
    assert Device.done == ["wait", "launch"]
    assert session.run({"a": narrow(feed)["a"], "n": given["n"]})["y"].__cuda_array_interface__["stream"] == 1


def test_an_output_of_another_session_is_waited_for(tmp_path: Path, session: GraphSession) -> None:
    other = open_session(tmp_path, stream=55)
    Stream(55)
    feed = make_feed(2)
    given = narrow(feed)
    y = other.run(given)["y"]
    result = session.run(MappingProxyType({"a": y, "n": given["n"]}))["y"]
    assert Device.ordered == [(100, 55)]
    assert np.array_equal(result.to_numpy(), expect({"a": expect(feed), "n": feed["n"]}))
    session.run({"a": result, "n": given["n"]})
    assert len(Device.ordered) == 1  # its own are ready


def test_engines_of_one_graph_share_stream_and_pinned_inputs(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"whole")
    first = TensorRTEngine(tmp_path / "model.plan", GRAPH, CANDIDATE, plugins=())
    second = TensorRTEngine(tmp_path / "model.plan", GRAPH, CANDIDATE, plugins=(), beside=first)
    assert len(Device.streams) == 1
    feed, pinned = make_feed(2), first.allocate("a", (2, 4))
    pinned[:] = feed["a"]
    feed["a"] = pinned
    held = set(Device.held)
    assert np.array_equal(second.execute(["y"], feed)[0], expect(feed))
    assert len(set(Device.held) - held) == 5  # a, n, y on the device, n and y on the host
    second.close()
    assert np.array_equal(first.execute(["y"], feed)[0], expect(feed))
    first.close()


def test_int64_on_the_gpu_is_refused_where_the_engine_has_int32(session: GraphSession) -> None:
    feed = make_feed(2)
    with pytest.raises(InputError) as caught:
        session.run({"a": feed["a"], "n": OnDevice(feed["n"])})
    assert str(caught.value) == (
        "input 'n' is int64 on the GPU, and this engine holds int32\n"
        "  allowed: int32 on the GPU, or int64 in a numpy array, which is narrowed\n"
        "  fix:     tensor.to(torch.int32)"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strides": (4, 8)}, "strides (4, 8)"),
        ({"typestr": "<f2"}, "input 'a' has the wrong dtype"),
        ({"shape": (4, 2)}, "input 'a' has the wrong size on axis 1"),
        ({"shape": (8,)}, "input 'a' has the wrong rank"),
        ({"mask": object()}, "without a mask"),
    ],
)
def test_what_cannot_be_read_where_it_lies_is_refused(
    session: GraphSession, change: dict[str, Any], words: str
) -> None:
    feed = make_feed(2)
    with pytest.raises(InputError) as caught:
        session.run({"a": Interface(narrow(feed)["a"], **change), "n": feed["n"]})
    assert words in str(caught.value)
    assert np.array_equal(session.run(feed)["y"], expect(feed))


def test_a_library_that_hands_nothing_over_is_quoted(session: GraphSession) -> None:
    class Graded(OnDevice):
        @property
        def __cuda_array_interface__(self) -> object:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")

        def __dlpack__(self, *, stream: int | None = None) -> object:
            raise BufferError("Can't export tensors that require gradient")

    feed = make_feed(2)
    with pytest.raises(InputError, match="Can't export tensors that require gradient"):
        session.run({"a": Graded(feed["a"]), "n": feed["n"]})


def test_a_tensor_of_the_host_is_no_array_of_the_gpu(session: GraphSession) -> None:
    feed = make_feed(2)
    with pytest.raises(InputError, match="input 'a' is no numpy array"):
        session.run({"a": torch.from_numpy(feed["a"]), "n": feed["n"]})


def test_a_backend_of_the_host_refuses_arrays_on_the_gpu() -> None:
    session = GraphSession(
        GRAPH,
        {"batch": (1, 2, 8)},
        choice=Choice(graph="g", file="g/model.onnx", backend="onnxruntime-cpu", precision="fp32"),
        execute=lambda names, feed: [expect(dict(feed))],
        close=lambda: None,
    )
    feed = make_feed(2)
    with pytest.raises(InputError) as caught:
        session.run({"a": OnDevice(feed["a"]), "n": feed["n"]})
    assert str(caught.value) == (
        "input 'a' is on the GPU, and onnxruntime-cpu takes arrays of the host\n"
        "  where:   graph 'g'\n"
        f"  got:     {OnDevice.__module__}.OnDevice\n"
        "  allowed: numpy arrays; with a TensorRT engine also arrays on the GPU\n"
        "  fix:     copy it: tensor.cpu().numpy(), cupy.asnumpy(array) or array.to_numpy()"
    )
    made = session.allocate_inputs({"batch": 3})
    assert {name: (value.shape, str(value.dtype)) for name, value in made.items()} == {
        "a": ((3, 4), "float32"), "n": ((3,), "int64"),
    }  # fmt: skip


def test_allocated_inputs_are_read_without_a_copy_on_the_host(session: GraphSession) -> None:
    made = session.allocate_inputs({"batch": 4})
    held = set(Device.held)
    for seed in range(4):
        feed = make_feed(4, seed)
        made["a"][:], made["n"][:] = feed["a"], feed["n"]
        assert np.array_equal(session.run(made)["y"], expect(feed))
    assert len(set(Device.held) - held) == 5  # a, n, y on the device, n and y on the host: none for a
    del made
    gc.collect()
    feed = make_feed(4)
    assert np.array_equal(session.run(feed)["y"], expect(feed))
    with pytest.raises(InputError, match="dim 'batch' cannot be 9"):
        session.allocate_inputs({"batch": 9})


def test_a_full_gpu_is_said_and_outputs_fit_once_some_are_dropped(
    session: GraphSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, feed = narrow(make_feed(8, 1)), make_feed(8, 1)
    kept = [session.run(given)["y"] for _ in range(2)]
    monkeypatch.setattr(Device, "free_bytes", 0)
    with pytest.raises(PreflightError, match="the GPU is full"):
        session.run(given)
    kept.pop()
    assert np.array_equal(session.run(given)["y"].to_numpy(), expect(feed))


def test_check_finite_looks_at_outputs_on_the_gpu(session: GraphSession) -> None:
    feed = make_feed(2)
    feed["a"][1, 2] = np.inf
    with pytest.raises(ParityError, match="1 of 8 elements"):
        session.run(narrow(feed), check_finite=True)
