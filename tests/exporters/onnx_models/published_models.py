"""Small models that say what published ONNX files say, each for one way in which a file of a package was refused.

`write(name, folder)` writes one to `folder / "<name>.onnx"`. Where each was seen stands beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

TEXTS = {
    # a signal shorter than a window is no frames, and ONNX Runtime divides by the frames of a Scan along an inner axis
    # (wespeaker's features, of onnx-asr)
    "crashes_on_one_size": """<ir_version: 8, opset_import: ["": 17]>
        g (float[T, 2] x) => (float[2] last, float[2, K] y) <int64[1] from = {3}, int64[1] to = {100}> {
            late = Slice(x, from, to) frames = Transpose<perm = [1, 0]>(late)
            zero = Constant<value = float[2] {0, 0}>()
            last, y = Scan (zero, frames) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = b (float[A] s, float[A] v) => (float[A] n, float[A] o) { n = Add(s, v) o = Identity(n) }>
        }""",
    "crashes_on_small_sizes": """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, T] x) => (float[2] last, float[2, K] y)
        <int64[1] from = {30}, int64[1] to = {100}, int64[1] axis = {1}> {
            frames = Slice(x, from, to, axis)
            zero = Constant<value = float[2] {0, 0}>()
            last, y = Scan (zero, frames) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = b (float[A] s, float[A] v) => (float[A] n, float[A] o) { n = Add(s, v) o = Identity(n) }>
        }""",
    # two sizes called `?` (the PaddleOCR files of rapidocr)
    "unknown_sizes": """<ir_version: 7, opset_import: ["": 11]>
        g (float[N, 3, H, W] x) => (float[N, 3, P, Q] y) { y = MaxPool<kernel_shape = [2, 2]>(x) }""",
    # a branch for a sample rate; the other one does not take the input (silero-vad)
    "asks_for_a_rate": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x, int64 sr) => (float[N, 4] y) <int64 rate = {16000}, int64[2] wrong = {7, -1}> {
            c = Equal(sr, rate)
            y = If (c) <then_branch = t () => (float[N, 4] a) { a = Relu(x) }, else_branch = e () => (float[K, L] b) {
                b = Reshape(x, wrong) }>
        }""",
    # torch's squeeze, traced: onnx's inference refuses the branch once the size is written in (silero-vad)
    "squeezes_a_size": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, T] x) => (float[A, B] y)
        <int64 i = {1}, int64 one = {1}, int64[1] axis = {1}, int64[2] two = {-1, 2}> {
            s = Shape(x) n = Gather(s, i) c = Equal(n, one)
            h = If (c) <then_branch = t () => (float[P] a) { a = Squeeze(x, axis) },
                else_branch = e () => (float[P, Q] b) { b = Identity(x) }>
            y = Reshape(h, two)
        }""",
    # a wake word that was not said: one probability of 1e-6 (openwakeword)
    "detects_nothing": """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 96] x) => (float[1, 1] y) <float[1] bias = {-14}> {
            m = MatMul(x, w) a = Add(m, bias) y = Sigmoid(a) }""",
}


def write(name: str, folder: Path) -> Path:
    """Write the model called `name` into `folder`."""
    model = onnx.parser.parse_model(TEXTS[name])
    rng = np.random.default_rng(0)
    read = {value for node in model.graph.node for value in node.input}
    if "w" in read:
        weight = rng.standard_normal((96, 1), dtype=np.float32) / np.float32(10)
        model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    if name == "unknown_sizes":
        for value in (*model.graph.input, *model.graph.output):
            for size in value.type.tensor_type.shape.dim[2:]:
                size.dim_param = "?"
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path
