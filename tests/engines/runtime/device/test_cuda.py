"""The calls of the CUDA driver, over a driver in C whose device is memory of the host (`fake_cuda.c`)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.runtime.device import cuda
from engines.runtime.device.cuda import CudaStream
from engines.runtime.device.pool import BlockPool
from engines.runtime.device.staging import PinnedMemory
from specs.errors import PreflightError

SOURCE = Path(__file__).with_name("fake_cuda.c")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
    return library


@pytest.fixture
def said(driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """What the driver was told since it was asked last."""
    monkeypatch.setattr(cuda, "_LIBRARY", str(driver))
    cuda._open_driver.cache_clear()
    library = ctypes.CDLL(str(driver))
    library.takeSaid.restype = ctypes.c_char_p
    library.takeSaid()
    yield library
    cuda._open_driver.cache_clear()


def take(said: ctypes.CDLL) -> list[tuple[str, ...]]:
    return [tuple(line.rsplit(" ", 2)) for line in said.takeSaid().decode().splitlines()]


def test_copies_go_there_and_back(said: ctypes.CDLL) -> None:
    stream = CudaStream()
    value, back, now = np.arange(6, dtype=np.float32), np.zeros(6, np.float32), np.zeros(6, np.float32)
    here, there = stream.allocate(24), stream.allocate(24)
    stream.copy_in(here, value.ctypes.data, 24)
    stream.copy_across(there, here, 24)
    stream.copy_out(back.ctypes.data, there, 24)
    stream.copy_out_now(now.ctypes.data, there, 24)
    assert np.array_equal(back, value) and np.array_equal(now, value)
    own = str(stream.handle)
    assert take(said) == [
        ("in", own, "24"), ("across", own, "24"), ("out", own, "24"), ("wait", own, "0"), ("out now", "0", "24"),
    ]  # fmt: skip
    stream.free(here)
    stream.free(there)
    stream.close()


def test_a_full_gpu_says_what_was_asked_and_what_is_left(said: ctypes.CDLL) -> None:
    stream = CudaStream()
    kept = stream.allocate(1 << 19)
    for allocate in (stream.allocate, BlockPool(stream).take):
        with pytest.raises(PreflightError) as caught:
            allocate(1 << 20)
        assert str(caught.value) == (
            "the GPU is full\n"
            "  got:     1.0 MB asked for, 0.5 MB of the GPU's 1.0 MB are free\n"
            "  fix:     run smaller batches, drop outputs that are kept on the GPU, or close other users of it"
            " (nvidia-smi)"
        )
    with pytest.raises(PreflightError, match="the host has no room left that the GPU can copy from"):
        PinnedMemory(stream, (1 << 20,), np.dtype(np.uint8), set())
    stream.free(kept)
    stream.free(stream.allocate(1 << 20))


def test_a_pool_gives_up_other_sizes_before_it_refuses(said: ctypes.CDLL) -> None:
    pool = BlockPool(CudaStream())
    first = pool.take(1 << 19)
    address = first.address
    del first
    assert pool.take(1 << 19).address == address
    second = pool.take(1 << 20)  # only once the idle half is freed
    pool.close()
    del second
    assert pool.take(1 << 20).address, "what was lent when the pool was closed is freed at its end"


def test_streams_wait_for_each_other_by_events(said: ctypes.CDLL) -> None:
    stream, users = CudaStream(), CudaStream(7)
    own, event, other = str(stream.handle), str(stream._event), str(users._event)
    stream.wait_for(7)
    stream.hold_up(1)
    stream.wait_for(stream.handle)  # nothing to do
    users.hold_up(stream.handle)
    assert take(said) == [
        ("record", event, "7"), ("after", own, event),
        ("record", event, own), ("after", "1", event),
        ("record", other, "7"), ("after", own, other),
    ]  # fmt: skip
    users.close()
    users.hold_up(stream.handle)  # closed: nothing is left on it
    assert take(said) == [("wait", "7", "0"), ("drop", other, "0")]  # the stream itself is the user's
    stream.close()
    assert take(said)[-1] == ("destroy", own, "0")


def test_a_graph_is_captured_on_a_stream_of_its_own(said: ctypes.CDLL) -> None:
    legacy = CudaStream(0)  # which cannot be captured
    seen: list[int] = []
    graph = legacy.capture(lambda recorder: seen.append(recorder.handle))
    legacy.launch(graph)
    words = [name for name, *_ in take(said)]
    assert words[:4] == ["begin", "end", "instantiate", "destroy graph"] and words[-1] == "launch"
    assert seen != [0] and words.count("destroy") == 1

    def fail(recorder: CudaStream) -> None:
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        legacy.capture(fail)
    words = [name for name, *_ in take(said)]
    assert "end" in words and "instantiate" not in words and words.count("destroy") == 1
    legacy.forget(graph)


def test_a_refusal_of_the_driver_is_quoted(said: ctypes.CDLL) -> None:
    stream = CudaStream()
    stream.handle = 0
    with pytest.raises(PreflightError) as caught:
        stream._record(lambda recorder: None)
    assert str(caught.value) == (
        "the GPU refused cuStreamBeginCapture_v2\n  got:     906: something else\n"
        "  fix:     look at the GPU and its driver: nvidia-smi, metagen-deploy doctor"
    )
