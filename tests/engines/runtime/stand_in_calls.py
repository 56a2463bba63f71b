"""The graph of the TensorRT stand-in, y = 2 a + n, and calls of it with arrays of the host and of its device."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from engines.runtime.device import dlpack
from engines.runtime.device.dlpack import make_capsule
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.graph_session import Choice, GraphSession
from engines.runtime.preflight import Candidate
from specs.bundle import Graph, IoTensor
from tests.engines.runtime.tensorrt_stand_in import Device

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
CANDIDATE = Candidate(file="g/model.plan", backend="tensorrt", precision="fp16", shares_profiles=True)


def make_feed(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"a": random.random((batch, 4), np.float32), "n": random.integers(-9, 9, batch)}


def expect(feed: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = (2 * feed["a"] + feed["n"][:, None]).astype(np.float32)
    return result


class OnDevice:
    """Another library's array: by DLPack, or by __cuda_array_interface__ alone."""

    def __init__(self, value: np.ndarray, *, shift: int = 0) -> None:
        self.shape, self.dtype = value.shape, value.dtype
        self.address = Device.make_memory(value.nbytes, shift=shift)
        self.write(value)
        self.streams: list[int] = []

    def write(self, value: np.ndarray) -> None:
        ctypes.memmove(self.address, np.ascontiguousarray(value).ctypes.data, value.nbytes)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (dlpack.CUDA, 0)

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.streams.append(stream or 0)
        return make_capsule(self.address, self.shape, self.dtype, self)


class Interface:
    def __init__(self, array: OnDevice, **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "version": 3, "shape": array.shape, "typestr": array.dtype.str, "data": (array.address, False), **changes,
        }  # fmt: skip


def open_session(folder: Path, *, stream: int | None = None) -> GraphSession:
    (folder / "model.plan").write_bytes(b"whole")
    engine = TensorRTEngine(folder / "model.plan", GRAPH, CANDIDATE, plugins=(), stream=stream)
    return GraphSession(
        GRAPH,
        {"batch": (1, 2, 8)},
        choice=Choice(graph="g", file="g/model.plan", backend="tensorrt", precision="fp16"),
        execute=engine.execute,
        close=engine.close,
        view=engine.view,
        allocate=engine.allocate,
    )


def narrow(feed: dict[str, np.ndarray]) -> dict[str, OnDevice]:
    """On the device, in the engine's own types."""
    return {"a": OnDevice(feed["a"]), "n": OnDevice(feed["n"].astype(np.int32))}
