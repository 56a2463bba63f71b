"""What Session.run costs over ONNX Runtime's own call, on a graph so small that little else is left.

Pairs of calls alternate in one process, so that a slow moment of the machine hits both; the figure is the median of
the differences. The aim is 30 microseconds at the most.

python benchmarks/bench_session_overhead.py [--pairs 20000]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime

from engines.runtime import load
from specs.bundle import Graph, IoTensor, Manifest
from specs.bundle.files import index_files, write_manifest

AIM_US = 30.0


def write_tiny_bundle(folder: Path) -> Path:
    """Two inputs, one Add, one output."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, 8] a, float[batch, 8] b) => (float[batch, 8] c) { c = Add (a, b) }"""
    onnx.save_model(onnx.parser.parse_model(text), folder / "tiny.onnx")
    np.savez(folder / "tiny.golden.npz")
    tensors = {name: IoTensor(name=name, dtype="float32", shape=("batch", 8)) for name in "abc"}
    graph = Graph(
        name="tiny",
        component="tiny",
        file="tiny.onnx",
        golden="tiny.golden.npz",
        inputs=(tensors["a"], tensors["b"]),
        outputs=(tensors["c"],),
    )
    manifest = Manifest(
        name="tiny",
        spec_digest="",
        created_by={},
        dims={"batch": (1, 4, 8)},
        pipeline={"kind": "tensors", "graph": "tiny"},
        graphs=(graph,),
        files=index_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def time_pairs(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> tuple[list[int], list[int]]:
    """Nanoseconds of each call, the order swapped from pair to pair."""
    times: tuple[list[int], list[int]] = ([], [])
    calls = (ours, theirs)
    for pair in range(pairs + pairs // 10):
        for which in (pair % 2, 1 - pair % 2):
            start = time.perf_counter_ns()
            calls[which]()
            elapsed = time.perf_counter_ns() - start
            if pair >= pairs // 10:  # the first tenth warms up
                times[which].append(elapsed)
    return times


def measure_overhead_us(pairs: int) -> dict[str, float]:
    """Median call times and the median difference of pairs, in microseconds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_tiny_bundle(Path(temporary))
        session = load(folder, backend="onnxruntime-cpu", threads=1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        raw = onnxruntime.InferenceSession(str(folder / "tiny.onnx"), options, providers=["CPUExecutionProvider"])
        feed = {name: np.ones((4, 8), np.float32) for name in "ab"}
        ours, theirs = time_pairs(lambda: session.run(feed), lambda: raw.run(None, feed), pairs)
    return {
        "session_us": statistics.median(ours) / 1e3,
        "onnxruntime_us": statistics.median(theirs) / 1e3,
        "overhead_us": statistics.median(a - b for a, b in zip(ours, theirs, strict=True)) / 1e3,
        "overhead_p90_us": statistics.quantiles((a - b for a, b in zip(ours, theirs, strict=True)), n=10)[-1] / 1e3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20000)
    figures = measure_overhead_us(parser.parse_args().pairs)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
    print(json.dumps({**figures, "aim_us": AIM_US, "machine": platform.processor() or platform.machine(), **versions}))
    return 0 if figures["overhead_us"] <= AIM_US else 1


if __name__ == "__main__":
    sys.exit(main())
