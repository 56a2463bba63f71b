"""A small classifier, exported with and judged on samples that are held out, and what breaks a typed graph of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from engines.checking.compare import StageName
from engines.checking.held_out import judge_held_out
from engines.checking.reference import read_golden, read_held_out
from specs.bundle import Manifest
from specs.report import ParityReport, ParityRow

Export = Callable[..., tuple[Manifest, ParityReport]]
Change = Callable[[onnx.ModelProto], None]

WIDTH, CLASSES, SAMPLES = 64, 200, 40


def write_model(folder: Path, tail: str = "y = Identity(c)") -> Path:
    """Three products; `tail` makes y [N, 200] of the last one's c."""
    rng = np.random.default_rng(4)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N, {WIDTH}] x) => (float[N, K] y) {{'
        f" m = MatMul(x, u) n = Add(m, b) a = Relu(n) p = MatMul(a, v) q = Relu(p) c = MatMul(q, w) {tail} }}"
    )
    sizes = {"u": (WIDTH, WIDTH), "v": (WIDTH, 4 * WIDTH), "w": (4 * WIDTH, CLASSES), "b": (WIDTH,)}
    for name, shape in sizes.items():
        array = (rng.standard_normal(shape) / np.sqrt(shape[0] / 2)).astype(np.float32)
        sure = 3 if name == "w" and "Softmax" in tail else 1
        model.graph.initializer.append(numpy_helper.from_array(array * np.float32(sure), name))
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def make_inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((SAMPLES, WIDTH), dtype=np.float32)


def judge(folder: Path, manifest: Manifest, change: Change, target: str, precision: str = "int8") -> list[ParityRow]:
    """The rows of the typed graph after `change`, as a check makes them."""
    (graph,) = manifest.graphs
    typed = next(typed for typed in graph.typed if (typed.target, typed.precision) == (target, precision))
    proto = onnx.load(folder / typed.file)
    change(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feed, golden = read_golden(folder, graph)
    held = read_held_out(folder, graph, target, precision)
    names = [tensor.name for tensor in graph.outputs]
    results = [dict(zip(names, session.run(None, one), strict=True)) for one in (feed, *held.feeds)]
    where = StageName(graph=graph.name, stage=typed.file, backend="onnxruntime", precision=precision)
    return judge_held_out(where, graph, results, [golden, *held.answers], held.rounding)


def change_weight(proto: onnx.ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = max(proto.graph.initializer, key=lambda one: np.prod(one.dims))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), tensor.name))


def drop_bias(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        if node.op_type == "Add" and "b" in " ".join(node.input):
            node.op_type = "Identity"
            del node.input[1]
            return
    raise AssertionError("no bias")
