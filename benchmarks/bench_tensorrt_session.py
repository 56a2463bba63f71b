"""What Session.run costs over TensorRT's own calls: a graph launch, with the copies that the same work needs.

    python bench_tensorrt_session.py BUNDLE --batch 1 32 [--precision fp16]

    raw             launch of a CUDA graph of execute_async_v3, and the wait for it; all data on the GPU
    raw + copies    the same between copies from and to pinned memory: the least that data on the host can cost
    numpy           Session.run of arrays anywhere on the host, which it first copies into pinned memory
    pinned          Session.run of GraphSession.allocate_inputs: no such copy
    interface       Session.run of arrays on the GPU by __cuda_array_interface__; outputs stay there
    dlpack          the same by DLPack, from a producer that orders no streams; where torch is installed, as the rest
    torch           the same with torch's tensors, outputs taken back by torch.from_dlpack
    torch, stream   the same on torch's stream

Calls of all contenders alternate in one process; a figure is a median, an overhead the median of differences in a round
to `raw` (arrays on the GPU) or to `raw + copies` (arrays on the host). The aim is 20 microseconds at the most.
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
from bench_tensorrt import Feed, RawEngine, choose_graph, make_feed

from engines.runtime import load
from specs.bundle import read_manifest

ROUNDS = 400
Contenders = dict[str, Callable[[], object]]


class OnDevice:
    """An array on the GPU that speaks __cuda_array_interface__ alone."""

    def __init__(self, raw: RawEngine, value: np.ndarray[Any, Any]) -> None:
        value = np.ascontiguousarray(value)
        address = raw.stream.allocate(value.nbytes)
        raw.stream.copy_in(address, value.ctypes.data, value.nbytes)
        raw.stream.synchronize()
        self.__cuda_array_interface__ = {
            "version": 3, "shape": value.shape, "typestr": value.dtype.str, "data": (address, False), "stream": None,
        }  # fmt: skip


def make_raw(raw: RawEngine) -> Contenders:
    """The two calls without a session."""
    stream = raw.stream
    pinned = {name: stream.allocate_host(size) for name, (_, size, _) in raw.places.items()}

    def launch() -> None:
        raw.launch()
        stream.synchronize()

    def launch_with_copies() -> None:
        for name, (address, size, is_input) in raw.places.items():
            if is_input:
                stream.copy_in(address, pinned[name], size)
        raw.launch()
        for name, (address, size, is_input) in raw.places.items():
            if not is_input:
                stream.copy_out(pinned[name], address, size)
        stream.synchronize()

    return {"raw": launch, "raw + copies": launch_with_copies}


def narrow(feed: Feed, session: Any, name: str) -> Feed:
    """In the engine's own types: TensorRT 8 has int32 for int64."""
    dtypes = session.graphs[name]._view.__self__._dtypes
    return {key: value.astype(dtypes[key]) for key, value in feed.items()}


def make_sessions(folder: Path, name: str, precision: str, feed: Feed, raw: RawEngine) -> Contenders:
    """Session.run over every kind of array that is there."""
    session = load(folder, backend="tensorrt", precision=precision)
    run, graph = session.graphs[name].run, session.graphs[name]
    pinned = graph.allocate_inputs({"batch": len(next(iter(feed.values())))})
    for key, value in feed.items():
        pinned[key][...] = value
    small = narrow(feed, session, name)
    plain = {key: OnDevice(raw, value) for key, value in small.items()}
    made: Contenders = {
        "numpy": lambda: run(feed),
        "pinned": lambda: run(pinned),
        "interface": lambda: run(plain),
    }
    if not importlib.util.find_spec("torch"):
        return made
    torch: Any = importlib.import_module("torch")
    tensors = {key: torch.from_numpy(value).cuda() for key, value in small.items()}
    handed = {key: Handed(torch, tensor) for key, tensor in tensors.items()}
    made["dlpack"] = lambda: run(handed)
    made["torch"] = lambda: {key: torch.from_dlpack(value) for key, value in run(tensors).items()}
    stream = torch.cuda.current_stream()
    shared = load(folder, backend="tensorrt", precision=precision, stream=stream.cuda_stream).graphs[name].run

    def run_on_stream() -> object:
        result = {key: torch.from_dlpack(value) for key, value in shared(tensors).items()}
        stream.synchronize()
        return result

    made["torch, stream"] = run_on_stream
    return made


class Handed:
    """A torch tensor whose capsule is made without a look at streams: what DLPack itself costs."""

    def __init__(self, torch: Any, tensor: Any) -> None:
        self._tensor, self._make = tensor, torch.utils.dlpack.to_dlpack

    def __dlpack__(self, *, stream: int | None = None) -> object:
        return self._make(self._tensor)


def time_in_turn(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Microseconds of every call; the first tenth warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + rounds // 10):
        for name, call in contenders.items():
            start = time.perf_counter_ns()
            call()
            if index >= rounds // 10:
                times[name].append((time.perf_counter_ns() - start) / 1e3)
    return times


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
    engine = next(e for e in graph.engines if e.backend == "tensorrt" and e.precision == arguments.precision)
    for batch in arguments.batch:
        feed = make_feed(graph, manifest.dims, batch)
        raw = RawEngine((arguments.bundle / engine.file).read_bytes(), feed)
        contenders = make_raw(raw)
        contenders.update(make_sessions(arguments.bundle, graph.name, engine.precision, feed, raw))
        times = time_in_turn(contenders, ROUNDS)
        row: dict[str, object] = {"graph": graph.name, "batch": batch, "engine": engine.file}
        for name, spent in times.items():
            base = "raw + copies" if name in ("numpy", "pinned") else "raw"
            over = statistics.median(a - b for a, b in zip(spent, times[base], strict=True))
            row[name] = f"{statistics.median(spent):.1f} us, {over:+.1f} over {base}"
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
