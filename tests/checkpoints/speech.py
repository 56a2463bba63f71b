"""What the tests of Whisper and of wav2vec 2.0 share: sounds, their files, and a host loop over any kind of graph."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from engines.runtime.graph_session import Choice, GraphSession
from engines.runtime.pipelines import PIPELINES, Pipeline
from exporters.checkpoints import open_checkpoint
from exporters.lower import lower
from exporters.stored_parameters import streaming_parameters
from exporters.trace import choose_sizes, trace
from specs.bundle import Graph, IoTensor, Manifest
from specs.handlers import GraphModule, get_handler
from specs.samples.sounds import make_sound
from specs.schema import Spec
from tests.checkpoints.compare import Array

Run = Callable[[Mapping[str, Array]], list[Array]]  # named inputs -> outputs in the graph's order


def make_voice(count: int, samples: int, *, seed: int = 1) -> Array:
    """Sounds [count, samples], float32."""
    return make_sound((count, samples), np.random.default_rng(seed), sample_rate=16000).astype(np.float32)


def build(folder: Path) -> tuple[Spec, dict[str, GraphModule]]:
    """Our torch modules with the checkpoint's parameters, by graph."""
    checkpoint = open_checkpoint(folder)
    graphs = get_handler(checkpoint.spec).build(checkpoint.spec, parameters=checkpoint.source)
    return checkpoint.spec, {graph.name: graph for graph in graphs}


def run_torch(graph: GraphModule) -> Run:
    """The module itself."""

    def run(feed: Mapping[str, Array]) -> list[Array]:
        given = [torch.from_numpy(np.ascontiguousarray(feed[tensor.name])) for tensor in graph.inputs]
        with torch.no_grad(), streaming_parameters(graph.module):
            found = graph.module(*given)
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else (found,))]

    return run


def run_onnx(spec: Spec, graph: GraphModule, folder: Path) -> Run:
    """The portable graph in ONNX Runtime."""
    inputs = get_handler(spec).make_inputs(spec, graph, sizes=choose_sizes(spec.dims, near=3), seed=0)
    path = folder / f"{graph.name}.onnx"
    ir.save(lower(trace(graph, spec.dims, inputs), graph), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, {tensor.name: feed[tensor.name] for tensor in session.get_inputs()})


def open_loop(spec: Spec, graphs: Mapping[str, GraphModule], runs: Mapping[str, Run], folder: Path) -> Any:
    """The host loop that a bundle of `spec` would get, over the graphs that `runs` runs."""
    dims = {name: (dim.min, dim.opt, dim.max) for name, dim in spec.dims.items()}
    sessions = {}
    for name, graph in graphs.items():
        tensors = {
            kind: tuple(IoTensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in getattr(graph, kind))
            for kind in ("inputs", "outputs")
        }
        entry = Graph(name=name, component=graph.component, file="", golden="", **tensors)
        choice = Choice(graph=name, file="", backend="test", precision="fp32")
        execute = _make_execute(runs[name], [tensor.name for tensor in graph.outputs])
        sessions[name] = GraphSession(entry, dims, choice=choice, execute=execute, close=lambda: None)
    pipeline = get_handler(spec).describe_pipeline(spec)
    manifest = Manifest(name=spec.name, spec_digest="", created_by={}, dims=dims, pipeline=pipeline, graphs=())
    kind: type[Pipeline] = PIPELINES[pipeline["kind"]]
    return kind(folder, manifest, sessions)


def _make_execute(run: Run, outputs: Sequence[str]) -> Callable[[Sequence[str], Mapping[str, Array]], list[Array]]:
    def execute(names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        found = dict(zip(outputs, run(feed), strict=True))
        return [found[name] for name in names]

    return execute


def write_wav(path: Path, samples: Array, rate: int, *, kind: int = 1, bits: int = 16) -> Path:
    """Samples [channels, N] in [-1, 1] as a .wav of any kind that there is; odd chunks and an extra one beside."""
    levels = np.atleast_2d(samples).T
    if kind == 3:
        data = levels.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = np.rint(levels * 127 + 128).astype(np.uint8).tobytes()
    elif bits == 24:
        wide = np.rint(levels * (2**23 - 1)).astype("<i4")
        data = np.ascontiguousarray(wide).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        data = np.rint(levels * (2 ** (bits - 1) - 1)).astype(f"<i{bits // 8}").tobytes()
    channels, width = levels.shape[1], bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * width, channels * width, bits)
    chunks = ((b"LIST", b"odd"), (b"fmt ", layout), (b"data", data))
    body = b"".join(name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for name, part in chunks)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    return path
