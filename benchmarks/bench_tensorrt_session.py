"""What Session.run costs over the launch of the very CUDA graph that it launches, and the wait for it.

    python bench_tensorrt_session.py BUNDLE --batch 1 32 [--precision fp16]

    numpy           arrays anywhere on the host: copied into pinned memory first; the graph copies from and to there
    pinned          GraphSession.allocate_inputs: no copy on the host before the graph
    interface       arrays on the GPU by __cuda_array_interface__; outputs stay there, the graph copies nothing
    dlpack          the same by DLPack, from a producer that orders no streams; where torch is installed, as the rest
    torch           the same with torch's tensors, outputs taken back by torch.from_dlpack
    torch, stream   the same on torch's stream, waited for by torch

A session's own graph is the base because two instances of one engine differ by more than is looked for. Every call and
its graph's launch alternate in one process; figures are medians, the overhead the median of differences of neighbours.
The aim is 20 microseconds at the most.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_tensorrt import Feed, choose_graph, make_feed

from engines.runtime import load
from engines.runtime.executors.fixed_sizes import SizedEngines
from engines.runtime.executors.tensorrt import TensorRTEngine
from engines.runtime.graph_session import GraphSession
from specs.bundle.files import read_manifest

ROUNDS, WARM_UP = 400, 40


class OnDevice:
    """An array on the GPU that speaks __cuda_array_interface__ alone."""

    def __init__(self, engine: TensorRTEngine, value: np.ndarray[Any, Any]) -> None:
        stream = engine._stream
        value = np.ascontiguousarray(value)
        address = stream.allocate(value.nbytes)
        stream.copy_in(address, value.ctypes.data, value.nbytes)
        stream.synchronize()
        self.__cuda_array_interface__ = {
            "version": 3, "shape": value.shape, "typestr": value.dtype.str, "data": (address, False), "stream": None,
        }  # fmt: skip


class Handed:
    """A torch tensor whose capsule is made without a look at streams: what DLPack itself costs."""

    def __init__(self, torch: Any, tensor: Any) -> None:
        self._tensor, self._make = tensor, torch.utils.dlpack.to_dlpack

    def __dlpack__(self, *, stream: int | None = None) -> object:
        return self._make(self._tensor)


def find_engine(session: GraphSession, feed: Feed) -> TensorRTEngine:
    """The engine that runs these shapes."""
    owner = session._execute.__self__  # type: ignore[attr-defined]
    if isinstance(owner, SizedEngines):
        chosen = owner._by_shapes.get(tuple(feed[name].shape for name in owner._inputs), owner._general)
        owner = chosen.engine
    assert isinstance(owner, TensorRTEngine)
    return owner


def make_calls(session: GraphSession, feed: Feed) -> dict[str, Callable[[], object]]:
    """Session.run over every kind of array that is there."""
    run, engine = session.run, find_engine(session, feed)
    pinned = session.allocate_inputs({"batch": len(next(iter(feed.values())))})
    for key, value in feed.items():
        pinned[key][...] = value
    small = {key: value.astype(engine._dtypes[key]) for key, value in feed.items()}  # TensorRT 8: int32 for int64
    plain = {key: OnDevice(engine, value) for key, value in small.items()}
    made: dict[str, Callable[[], object]] = {
        "numpy": lambda: run(feed),
        "pinned": lambda: run(pinned),
        "interface": lambda: run(plain),
    }
    if importlib.util.find_spec("torch"):
        torch: Any = importlib.import_module("torch")
        tensors = {key: torch.from_numpy(value).cuda() for key, value in small.items()}
        handed = {key: Handed(torch, tensor) for key, tensor in tensors.items()}
        made["dlpack"] = lambda: run(handed)
        made["torch"] = lambda: {key: torch.from_dlpack(value) for key, value in run(tensors).items()}
    return made


def make_shared(session: GraphSession, feed: Feed, torch: Any) -> Callable[[], object]:
    """A call on torch's own stream, waited for as torch waits."""
    dtypes = find_engine(session, feed)._dtypes
    tensors = {key: torch.from_numpy(value.astype(dtypes[key])).cuda() for key, value in feed.items()}

    def run() -> object:
        results = {key: torch.from_dlpack(value) for key, value in session.run(tensors).items()}
        torch.cuda.current_stream().synchronize()
        return results

    return run


def measure(call: Callable[[], object], engine: TensorRTEngine) -> str:
    """One kind of array: the call, the launch of its graph, and the median of the differences."""
    for _ in range(WARM_UP):
        call()
    last = max(engine._contexts._calls, key=lambda one: one.used)
    assert last.graph, engine.capture_refusal
    spent: tuple[list[float], list[float]] = ([], [])
    for index in range(ROUNDS):
        for which in (index % 2, 1 - index % 2):
            start = time.perf_counter_ns()
            if which:
                engine._stream.launch(last.graph)
                engine._stream.synchronize()
            else:
                call()
            spent[which].append((time.perf_counter_ns() - start) / 1e3)
    over = statistics.median(a - b for a, b in zip(*spent, strict=True))
    return f"{statistics.median(spent[0]):.1f} us, {over:+.1f} over {statistics.median(spent[1]):.1f}"


def main() -> None:
    """A JSON object a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graph")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.bundle)
    graph = choose_graph(manifest, arguments.graph)
    open_bundle = {"backend": "tensorrt", "precision": arguments.precision}
    for batch in arguments.batch:
        feed = make_feed(graph, manifest.dims, batch)
        row: dict[str, object] = {"graph": graph.name, "batch": batch}
        with load(arguments.bundle, **open_bundle) as session:
            one = session.graphs[graph.name]
            engine = find_engine(one, feed)
            row.update({kind: measure(call, engine) for kind, call in make_calls(one, feed).items()})
        if importlib.util.find_spec("torch"):
            torch: Any = importlib.import_module("torch")
            with load(arguments.bundle, **open_bundle, stream=torch.cuda.current_stream().cuda_stream) as session:
                one = session.graphs[graph.name]
                row["torch, stream"] = measure(make_shared(one, feed, torch), find_engine(one, feed))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
