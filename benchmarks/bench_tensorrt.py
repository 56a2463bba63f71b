"""A bundle's TensorRT engines beside what a user would have picked, on one GPU host; prints a JSON object a row.

Two interpreters may share the work, since TensorRT and torch need not be in one environment. They meet in files:

    python bench_tensorrt.py stock BUNDLE OUT.onnx             torch: the plain module through torch.onnx.export
    python bench_tensorrt.py torch BUNDLE --batch 1 32         torch: eager and compiled, fp16
    python bench_tensorrt.py engines BUNDLE --batch 1 32       TensorRT: every engine of the bundle
    python bench_tensorrt.py onnx OUT.onnx --batch 1           TensorRT: build OUT.onnx with the FP16 flag, time it

device_ms  median over rounds of: CUDA events around 20 launches in a row, by 20; data stays on the GPU
wall_ms    median of one launch and its synchronisation, data on the GPU
session_ms median of Session.run, numpy in and numpy out, copies included; of the engine that the session takes
step_ms    the same of a decode step in a loop: its cache stays on the GPU, ids come from the host and logits go there
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engines.plugins import load_libraries, locate_files
from engines.runtime.device.cuda import CudaStream
from engines.runtime.executors.shape_ranges import choose_profile, read_shape_ranges
from specs.bundle import Graph, Manifest
from specs.bundle.files import read_manifest

ROUNDS, LAUNCHES, SESSION_CALLS = 30, 20, 200
Feed = dict[str, "np.ndarray[Any, Any]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stock", "torch", "engines", "onnx"))
    parser.add_argument("source", type=Path, help="a bundle, or for `onnx` an ONNX file")
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--graph")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--modes", nargs="+", default=["eager", "reduce-overhead"], help="of torch")
    parser.add_argument("--profile", type=int, nargs=3, default=(1, 1, 32), help="of the batch, for `onnx`")
    parser.add_argument("--timing-cache", type=Path, help="for `onnx`")
    parser.add_argument("--layers", type=Path, help="write the time of every layer into this folder")
    arguments = parser.parse_args()
    if arguments.what == "stock":
        export_stock(arguments.source, arguments.output, arguments.graph, arguments.batch[0])
    elif arguments.what == "torch":
        time_torch(arguments.source, arguments.graph, arguments.batch, arguments.modes)
    elif arguments.what == "engines":
        time_engines(arguments.source, arguments.graph, arguments.batch, arguments.layers)
    else:
        build_and_time(arguments.source, arguments.batch, arguments.profile, arguments.timing_cache, arguments.layers)


def show(**row: object) -> None:
    print(json.dumps(row), flush=True)


def choose_graph(manifest: Manifest, name: str | None) -> Graph:
    return manifest.graph(name) if name else manifest.graphs[0]


def make_feed(graph: Graph, dims: Mapping[str, tuple[int, int, int]], batch: int) -> Feed:
    """Random inputs (zeros would flatter the GPU); ids stay below every vocabulary; a cache lacks one slot."""
    random = np.random.default_rng(0)
    feed = {}
    for tensor in graph.inputs:
        named = {**{name: opt for name, (_, opt, _) in dims.items()}, "batch": batch}
        shape = [size if isinstance(size, int) else named[size] for size in tensor.shape]
        if tensor.name == "lengths" and "cache" in named:
            feed[tensor.name] = np.full(shape, named["cache"] - 1, tensor.dtype)
        elif tensor.dtype.startswith("int"):
            feed[tensor.name] = random.integers(1, 8, shape).astype(tensor.dtype)
        else:
            feed[tensor.name] = random.random(shape, dtype=np.float32).astype(tensor.dtype)
    return feed


# ---- TensorRT ----


class Events:
    """Two CUDA events, through the driver that `engines.runtime.device.cuda` has loaded."""

    def __init__(self, stream: CudaStream) -> None:
        self._driver, self._stream = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(stream.handle)
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self._check(self._driver.cuEventCreate(ctypes.byref(event), 0))

    def time_ms(self, work: Callable[[], object]) -> float:
        """Milliseconds of the stream between the start and the end of what `work` puts on it."""
        start, end = self._events
        self._check(self._driver.cuEventRecord(start, self._stream))
        work()
        self._check(self._driver.cuEventRecord(end, self._stream))
        self._check(self._driver.cuEventSynchronize(end))
        milliseconds = ctypes.c_float()
        self._check(self._driver.cuEventElapsedTime(ctypes.byref(milliseconds), start, end))
        return milliseconds.value

    @staticmethod
    def _check(code: int) -> None:
        assert code == 0, f"CUDA driver error {code}"


class RawEngine:
    """execute_async_v3 alone, captured as a CUDA graph, with all data on the GPU."""

    def __init__(self, plan: bytes, feed: Feed) -> None:
        import tensorrt as trt

        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self.context = self._engine.create_execution_context()
        self.stream = CudaStream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        ranges = read_shape_ranges(self._engine, list(feed))
        profile = choose_profile(ranges, {name: value.shape for name, value in feed.items()})
        assert profile == 0 or self.context.set_optimization_profile_async(profile, self.stream.handle)
        self.stream.synchronize()
        self._held = []
        for name in (*feed, *(n for n in names if n not in feed)):
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            if name in feed:
                assert self.context.set_input_shape(name, feed[name].shape)
            shape = tuple(self.context.get_tensor_shape(name))
            address = self.stream.allocate(int(np.prod(shape)) * dtype.itemsize)
            self.context.set_tensor_address(name, address)
            if name in feed:
                host = np.ascontiguousarray(feed[name], dtype)
                self._held.append(host)
                self.stream.copy_in(address, host.ctypes.data, host.nbytes)
        self.run_plainly()
        self.stream.synchronize()
        self.graph = self.stream.capture(self.run_plainly)

    def run_plainly(self, stream: CudaStream | None = None) -> None:
        assert self.context.execute_async_v3((stream or self.stream).handle)

    def launch(self) -> None:
        self.stream.launch(self.graph)

    def measure(self) -> dict[str, float]:
        def launch_many() -> None:
            for _ in range(LAUNCHES):
                self.launch()

        def launch_once() -> None:
            self.launch()
            self.stream.synchronize()

        events = Events(self.stream)
        for _ in range(10):
            events.time_ms(launch_many)
        device = [events.time_ms(launch_many) / LAUNCHES for _ in range(ROUNDS)]
        wall = time_calls(launch_once, ROUNDS * LAUNCHES)
        return {
            "device_ms": statistics.median(device), "device_min_ms": min(device), "device_max_ms": max(device),
            "wall_ms": statistics.median(wall),
        }  # fmt: skip

    def time_layers(self, runs: int = 20) -> list[tuple[str, float]]:
        """Mean milliseconds of every layer, measured one by one, in order."""
        import tensorrt as trt

        found: dict[str, float] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, name: str, milliseconds: float) -> None:
                found[name] = found.get(name, 0.0) + milliseconds / runs

        profiler = Profiler()
        self.context.profiler = profiler
        for _ in range(runs):
            self.run_plainly()
            self.stream.synchronize()
        return list(found.items())

    def inspect(self) -> list[Any]:
        import tensorrt as trt

        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        layers: list[Any] = json.loads(text, strict=False)["Layers"]  # 8.6 joins names by a bare control character
        return layers


def time_calls(call: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of every call, after a tenth more to warm up."""
    times = []
    for index in range(count + count // 10):
        start = time.perf_counter_ns()
        call()
        if index >= count // 10:
            times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def time_steps(run: Callable[..., Mapping[str, Any]], feed: Feed, kept: list[str]) -> list[float]:
    """Milliseconds of every step whose outputs `kept` are the next one's `past_*`."""
    fed: dict[str, Any] = dict(feed)

    def step() -> None:
        results = run(fed, keep=kept)
        fed.update({f"past_{name}": results[name] for name in kept})

    return time_calls(step, SESSION_CALLS)


def time_engines(folder: Path, name: str | None, batches: list[int], layers: Path | None) -> None:
    import tensorrt as trt

    from engines.runtime import load

    manifest = read_manifest(folder)
    graph = choose_graph(manifest, name)
    for engine in (e for e in graph.engines if e.backend == "tensorrt"):
        for batch in (size for size in batches if engine.sizes.get("batch", size) == size):
            dims = {**manifest.dims, **{name: (size, size, size) for name, size in engine.sizes.items()}}
            feed = make_feed(graph, dims, batch)
            load_libraries(trt, [folder / file for file in locate_files(manifest, engine)])
            raw = RawEngine((folder / engine.file).read_bytes(), feed)
            row: dict[str, Any] = raw.measure()
            with load(folder, backend="tensorrt", precision=engine.precision) as session:
                run = session.graphs[graph.name].run
                times = time_calls(lambda run=run, feed=feed: run(feed), SESSION_CALLS)
                if kept := [tensor.name for tensor in graph.outputs if f"past_{tensor.name}" in feed]:
                    row["step_ms"] = statistics.median(time_steps(run, feed, kept))
                row["session_ms"] = statistics.median(times)
            show(what=engine.file, graph=graph.name, precision=engine.precision, batch=batch, tuned=dims, **row)
            if layers:
                write_layers(layers / f"{folder.stem}-{graph.name}-{engine.precision}-b{batch}.json", raw)


def write_layers(path: Path, raw: RawEngine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"times": raw.time_layers(), "layers": raw.inspect()}, indent=0))


def build_and_time(
    model: Path, batches: list[int], profile: tuple[int, int, int], cache: Path | None, layers: Path | None
) -> None:
    """As trtexec --fp16 would: parse, one profile over the first dimension, the FP16 flag."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    kept = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
    config.set_tactic_sources(sum(1 << int(source) for source in kept))
    stored = cache.read_bytes() if cache and cache.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(stored), False)
    profiles = builder.create_optimization_profile()
    shapes, whole = {}, set()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes[tensor.name] = tuple(tensor.shape)
        if tensor.dtype == trt.int32:
            whole.add(tensor.name)
        if -1 in tensor.shape:
            profiles.set_shape(tensor.name, *([(batch, *tensor.shape[1:]) for batch in profile]))
    if any(-1 in shape for shape in shapes.values()):
        config.add_optimization_profile(profiles)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    seconds = time.perf_counter() - start
    if cache:
        cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    for batch in batches:
        random = np.random.default_rng(0)
        feed = {n: random.random((batch, *shape[1:]), dtype=np.float32) for n, shape in shapes.items()}
        feed |= {n: random.integers(1, 8, feed[n].shape).astype(np.int32) for n in whole}
        raw = RawEngine(bytes(plan), feed)
        row: dict[str, Any] = raw.measure()
        tuned = list(profile) if config.num_optimization_profiles else "this size"
        show(what=model.name, precision="fp16 flag", batch=batch, tuned=tuned, build_s=round(seconds, 1), **row)
        if layers:
            write_layers(layers / f"{model.stem}-b{batch}.json", raw)


# ---- torch ----


def export_stock(folder: Path, output: Path, name: str | None, size: int) -> None:
    """torch.onnx.export of the plain module, at an opset that TensorRT 8.6 reads, for one size of a batch.

    With a dynamic batch torch writes Shape(start, end), of which 8.6 makes another graph and refuses it.
    """
    import torch

    from specs import ops

    module, graph, manifest = load_module(folder, name)
    feed = make_feed(graph, manifest.dims, size)
    arguments = tuple(torch.from_numpy(feed[tensor.name]) for tensor in graph.inputs)
    with ops.plain_torch(), torch.inference_mode():
        torch.onnx.export(
            module, arguments, output, dynamo=True, opset_version=17, external_data=False,
            input_names=[t.name for t in graph.inputs], output_names=[t.name for t in graph.outputs],
        )  # fmt: skip


def load_module(folder: Path, name: str | None) -> tuple[Any, Graph, Manifest]:
    from specs.handlers import get_handler
    from specs.load import load_spec

    manifest = read_manifest(folder)
    graph = choose_graph(manifest, name)
    spec = load_spec(folder / "spec.yaml")
    modules = {built.name: built.module for built in get_handler(spec).build(spec)}
    return modules[graph.name].eval(), graph, manifest


def time_torch(folder: Path, name: str | None, batches: list[int], modes: list[str]) -> None:
    import torch

    from specs import ops

    module, graph, manifest = load_module(folder, name)
    module = module.cuda().half()
    torch.set_default_device("cuda")  # for the constants that it makes; weights are drawn on the CPU
    for batch in batches:
        feed = make_feed(graph, manifest.dims, batch)
        given = [torch.from_numpy(feed[t.name]).cuda() for t in graph.inputs]
        given = [value.half() if value.is_floating_point() else value for value in given]
        for mode in modes:
            torch._dynamo.reset()
            start = time.perf_counter()
            with ops.plain_torch(), torch.inference_mode():
                run = module if mode == "eager" else compile_module(module, given, mode)
                for _ in range(10):
                    run(*given)
                torch.cuda.synchronize()
                ready = time.perf_counter() - start
                row = measure_torch(lambda run=run, given=given: run(*given))
            show(
                what=f"torch {torch.__version__} {mode}", precision="fp16", batch=batch, ready_s=round(ready, 1), **row
            )


def compile_module(module: Any, given: list[Any], mode: str) -> Callable[..., object]:
    """torch.compile of the plain model that torch.export sees; Dynamo does not trace the switch of `plain_torch`."""
    import torch

    whole = torch.export.export(module, tuple(given)).module()
    whole.graph.eliminate_dead_code()  # questions about types, which Inductor does not know
    whole.recompile()
    compiled: Callable[..., object] = torch.compile(whole, mode=mode, dynamic=False, fullgraph=True)
    return compiled


def measure_torch(run: Callable[[], object]) -> dict[str, float]:
    import torch

    def run_once() -> None:
        run()
        torch.cuda.synchronize()

    device = []
    for _ in range(ROUNDS + 5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(LAUNCHES):
            run()
        end.record()
        end.synchronize()
        device.append(start.elapsed_time(end) / LAUNCHES)
    device = device[5:]
    return {
        "device_ms": statistics.median(device), "device_min_ms": min(device), "device_max_ms": max(device),
        "wall_ms": statistics.median(time_calls(run_once, ROUNDS * LAUNCHES)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
