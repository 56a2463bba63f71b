"""ONNX files as other people make them: what exporters, converters and hands leave behind, each tiny.

`TEXTS` are written in ONNX's text form; `BUILDERS` need protobufs, external files or torch's exporters. `write(name,
folder)` writes one of either to `folder / "<name>.onnx"`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TEXTS: Mapping[str, str] = {
    # interfaces
    "no_inputs": """<ir_version: 8, opset_import: ["": 17]>
        g () => (float[2, 3] y) { s = Constant<value = int64[2] {2, 3}>() y = ConstantOfShape<value = float[1]
            {0.5}>(s) }""",
    "scalar_input": """<ir_version: 8, opset_import: ["": 17]>
        g (float x, float[N] v) => (float[N] y, float z) { y = Mul(v, x) z = Neg(x) }""",
    "static": """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x) => (float[2, 4] y) { y = Tanh(x) }""",
    "zero_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[0, 4] x, float[N, 4] z) => (float[M, 4] y) { y = Concat<axis = 0>(x, z) }""",
    "unused_input": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x, float[N, 7] unused, int64 alsounused) => (float[N, 4] y) { y = Sigmoid(x) }""",
    "input_is_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] x, float[N, 4] y) { y = Relu(x) }""",
    "only_passes_on": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] x) { }""",
    "initializer_is_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x) => (float[3] w, float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }""",
    "ir3_weights_are_inputs": """<ir_version: 3, opset_import: ["": 9]>
        g (float[N, 3] x, float[3] w) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }""",
    "overridable_default": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x, float[3] w) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }""",
    "unnamed_dims": """<ir_version: 8, opset_import: ["": 17]>
        g (float[?, ?] x, float[?, ?] z) => (float[?, ?] y) { y = MatMul(x, z) }""",
    "unnamed_equal_dims": """<ir_version: 8, opset_import: ["": 17]>
        g (float[?, 4] x, float[?, 4] z) => (float[?, 4] y) { y = Add(x, z) }""",
    "shared_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 4] x, float[batch, 4] z) => (float[batch, 4] y) { y = Sub(x, z) }""",
    "derived_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[batch, time] x, float[batch, time] z) => (float[batch, two] y) { y = Concat<axis = 1>(x, z) }""",
    "output_without_shape": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float y) { y = Softmax<axis = -1>(x) }""",
    "output_lies_about_its_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 5] y) { y = Softmax<axis = -1>(x) }""",
    # types
    "float64": """<ir_version: 8, opset_import: ["": 17]>
        g (double[N, 4] x) => (double[N, 4] y) <double[4] w = {1.5, 2, 3, 4}> { h = Mul(x, w) y = Exp(h) }""",
    "float16": """<ir_version: 8, opset_import: ["": 17]>
        g (float16[N, 4] x) => (float16[N, 4] y) { h = Add(x, x) y = Relu(h) }""",
    "bfloat16_inside": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) { h = Cast<to = 16>(x) k = Cast<to = 1>(h) y = Relu(k) }""",
    "bfloat16_input": """<ir_version: 8, opset_import: ["": 17]>
        g (bfloat16[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }""",
    "uint8_input": """<ir_version: 8, opset_import: ["": 17]>
        g (uint8[N, 4] x) => (float[N, 4] y, uint8[N, 4] z) { y = Cast<to = 1>(x) z = BitShift<direction =
            "LEFT">(x, x) }""",
    "bool_input": """<ir_version: 8, opset_import: ["": 17]>
        g (bool[N, 4] m, float[N, 4] x, int64[N] i) => (float[N, 4] y, bool[N, 4] n, int64[N] j) {
            z = Constant<value_float = 0.0>() y = Where(m, x, z) n = Not(m) j = Neg(i) }""",
    "integers": """<ir_version: 8, opset_import: ["": 17]>
        g (int64[N, 4] i, int32[N, 4] k, int8[N] b, uint16[N] u) => (int64[N, 4] s, int32[N, 4] t, int8[N] c,
            uint16[N] v) {
            s = Add(i, i) t = Mul(k, k) c = Identity(b) v = Identity(u) }""",
    "string_input": """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (string[N] s) => (int64[N] y) { y = ai.onnx.ml.LabelEncoder<keys_strings = ["a"], values_int64s =
            [1]>(s) }""",
    "string_output": """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (int64[N] s) => (string[N] y) { y = ai.onnx.ml.LabelEncoder<keys_int64s = [1], values_strings =
            ["a"]>(s) }""",
    "sequence_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (seq(float[N, 4]) y) { y = SequenceConstruct(x, x) }""",
    "sequence_inside": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[M, 4] y) { s = SequenceConstruct(x, x) y = ConcatFromSequence<axis = 0>(s) }""",
    "optional_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (optional(float[N, 4]) y) { y = Optional(x) }""",
    # operators
    "opset7_batchnorm": """<ir_version: 3, opset_import: ["": 7]>
        g (float[N, 2, H] x) => (float[N, 2, H] y)
        <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0.5}, float[2] v = {1, 2}>
        { y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }""",
    "opset8_upsample": """<ir_version: 3, opset_import: ["": 8]>
        g (float[N, 1, 2, 2] x) => (float[N, 1, 4, 4] y) { y = Upsample<mode = "nearest", scales = [1.0, 1.0,
            2.0, 2.0]>(x) }""",
    "opset9_gemm": """<ir_version: 4, opset_import: ["": 9]>
        g (float[N, 3] x) => (float[N, 2] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> { y =
            Gemm<transB = 1>(x, w, b) }""",
    "opset10_slice": """<ir_version: 5, opset_import: ["": 10]>
        g (float[N, 6] x) => (float[N, 3] y) <int64[1] s = {0}, int64[1] e = {6}, int64[1] a = {1}, int64[1] t
            = {2}> { y = Slice(x, s, e, a, t) }""",
    "opset11_softmax": """<ir_version: 6, opset_import: ["": 11]>
        g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Softmax<axis = 1>(x) }""",
    "opset12_training": """<ir_version: 7, opset_import: ["": 12]>
        g (float[N, 8] x) => (float[N, 8] y) <float r = {0.5}, bool t = {0}> { y = Dropout(x, r, t) }""",
    "opset12_dropout_trains": """<ir_version: 7, opset_import: ["": 12]>
        g (float[N, 80] x) => (float[N, 80] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }""",
    "batchnorm_trains": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2, 5] x) => (float[N, 2, 5] y, float[2] rm, float[2] rv)
        <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0.5}, float[2] v = {1, 2}>
        { y, rm, rv = BatchNormalization<training_mode = 1>(x, s, b, m, v) }""",
    "opset24_swish": """<ir_version: 11, opset_import: ["": 24]>
        g (float[N, 4] x) => (float[N, 4] y) { y = Swish(x) }""",
    "opset23_rms": """<ir_version: 11, opset_import: ["": 23]>
        g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { y = RMSNormalization(x, w) }""",
    "opset21_groupnorm": """<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 4, 3] x) => (float[N, 4, 3] y) <float[4] s = {1, 2, 3, 4}, float[4] b = {0, 1, 0, 1}>
        { y = GroupNormalization<num_groups = 2>(x, s, b) }""",
    "random_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 40] x) => (float[N, 40] y) { r = RandomNormalLike(x) y = Add(x, r) }""",
    "if": """<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[N, 4] x) => (float[N, 4] y) {
            y = If (c) <then_branch = t () => (float[N, 4] a) { a = Relu(x) }, else_branch = e () => (float[N,
            4] b) { b = Neg(x) }>
        }""",
    "loop": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) <int64 n = {3}, bool c = {1}> {
            y = Loop (n, c, x) <body = b (int64 i, bool go, float[N, 4] h) => (bool go2, float[N, 4] k) {
                go2 = Identity(go) one = Constant<value_float = 1.25>() k = Mul(h, one) }>
        }""",
    "scan": """<ir_version: 8, opset_import: ["": 17]>
        g (float[T, 4] x) => (float[4] last, float[T, 4] all) {
            zero = Constant<value = float[4] {0, 0, 0, 0}>()
            last, all = Scan (zero, x) <num_scan_inputs = 1, body = b (float[4] s, float[4] v) => (float[4] n,
            float[4] o) {
                n = Add(s, v) o = Identity(n) }>
        }""",
    "topk": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x) => (float[N, 2] v, int64[N, 2] i) <int64[1] k = {2}> { v, i = TopK(x, k) }""",
    "topk_k_is_an_input": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x, int64[1] k) => (float[N, K] v, int64[N, K] i) { v, i = TopK(x, k) }""",
    "nonzero": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (int64[2, M] y) { h = Relu(x) y = NonZero(h) }""",
    "nan_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x) => (float[N, 9] y) { y = Sqrt(x) }""",
    "overflows_half": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x) => (float[N, 9] y) <float k = {1e6}> { y = Mul(x, k) }""",
    "quantized_uint8": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 2] y)
        <float s = {0.02}, uint8 z = {128}, float ws = {0.01}, int8 wz = {0}, int8[4, 2] w = {1, -2, 30, 4,
            -50, 6, 70, -8}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) wd = DequantizeLinear(w, ws, wz) y =
            MatMul(d, wd) }""",
    "matmul_integer": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 2] y) <int8[4, 2] w = {1, -2, 30, 4, -50, 6, 70, -8}> {
            q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, w, z) f = Cast<to = 1>(p) y = Mul(f, s) }""",
    "qlinear_conv": """<ir_version: 8, opset_import: ["": 13]>
        g (uint8[N, 1, 5, 5] x) => (uint8[N, 1, 5, 5] y)
        <float xs = {0.02}, uint8 xz = {3}, uint8[1, 1, 1, 1] w = {7}, float ws = {0.1}, uint8 wz = {1}, float
            ys = {0.05}, uint8 yz = {0}>
        { y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz) }""",
    # domains and functions
    "contrib": """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = com.microsoft.Gelu(x) y = com.microsoft.QuickGelu(h) }""",
    "sklearn": """<ir_version: 6, opset_import: ["": 11, "ai.onnx.ml": 1]>
        g (float[N, 2] x) => (int64[N] label, float[N, 2] scores) {
            raw, p = ai.onnx.ml.LinearClassifier<classlabels_ints = [0, 1], coefficients = [1.0, 2.0, -1.0,
            -2.0], intercepts = [0.1, -0.1], post_transform = "SOFTMAX">(x)
            label = Identity(raw) scores = Identity(p) }""",
    "unknown_domain": """<ir_version: 8, opset_import: ["": 17, "my.company": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = Relu(x) y = my.company.SecretSauce(h) }""",
    "unknown_op": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) { y = Relux(x) }""",
    "function": """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = local.twice(x) y = local.act<slope = 0.25>(h) }
        <domain: "local", opset_import: ["": 17]> once (a) => (b) { b = Tanh(a) }
        <domain: "local", opset_import: ["": 17, "local": 1]> twice (a) => (b) { c = local.once(a) b = local.once(c) }
        <domain: "local", opset_import: ["": 17]> act<slope> (a) => (b) { b = LeakyRelu<alpha: float =
            @slope>(a) }""",
    "function_of_other_opset": """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 13]> f (a) => (b) { b = Softmax(a) }""",
    # names
    "keywords": """<ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 4] allow_pickle, float[batch, 4] file) => (float[batch, 4] args, float[batch, 4] kwds) {
            args = Add(allow_pickle, file) kwds = Sub(allow_pickle, file) }""",
}


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for part in (node.input, node.output):
            for index, name in enumerate(part):
                part[index] = names.get(name, name)


def _make_gemms(count: int, *, width: int = 4, seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    text = "\n".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(count))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, {width}] h0) => (float[N, {width}] y) {{ {text} y = Tanh(h{count}) }}"""
    )
    for index in range(count):
        weight = rng.standard_normal((width, width), dtype=np.float32) / np.float32(width**0.5)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"w{index}"))
    return model


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def strange_names(path: Path) -> None:
    model = _make_gemms(2)
    rename(model, {"h0": "in/put:0 ä", "y": "../out put\\1", "w0": "a/b", "w1": "模型.weight", "h1": " "})
    _save(model, path)


def nameless_nodes(path: Path) -> None:
    model = _make_gemms(3)
    for node in model.graph.node:
        node.name = ""
    _save(model, path)


def duplicate_nodes(path: Path) -> None:
    model = _make_gemms(3)
    for node in model.graph.node:
        node.name = "same"
    _save(model, path)


def long_names(path: Path) -> None:
    model = _make_gemms(1)
    rename(model, {"h0": "i" * 300, "y": "o" * 300, "w0": "w" * 300})
    _save(model, path)


def colliding_dim_names(path: Path) -> None:
    """`x_0` is the name of a dim and would be what the unnamed axis 0 of `x` is called."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[?, 4] x, float[x_0, 3] z) => (float[?, 4] y, float[x_0, 3] w) { y = Relu(x) w = Relu(z) }"""
    )
    _save(model, path)


def strange_dim_names(path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[A, B] x) => (float[A, B] y) { y = Relu(x) }"""
    )
    for value in (*model.graph.input, *model.graph.output):
        first, second = value.type.tensor_type.shape.dim
        first.dim_param, second.dim_param = "batch size", "unk__17 + 1"
    _save(model, path)


def negative_dim(path: Path) -> None:
    """Old Keras and CNTK converters write -1 (or 0) for a batch they do not know."""
    model = onnx.parser.parse_model(
        """<ir_version: 4, opset_import: ["": 9]>
        g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }"""
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    _save(model, path)


def rankless_input(path: Path) -> None:
    model = _make_gemms(1)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    _save(model, path)


def same_output_twice(path: Path) -> None:
    model = _make_gemms(1)
    model.graph.output.append(model.graph.output[0])
    _save(model, path)


def same_input_twice(path: Path) -> None:
    model = _make_gemms(1)
    model.graph.input.append(model.graph.input[0])
    _save(model, path)


def two_names_for_one_value(path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] a, float[N, 4] b, float[N, 4] c) { h = Relu(x) a = Identity(h) b =
            Identity(h) c = Identity(x) }"""
    )
    _save(model, path)


def many_weights(path: Path) -> None:
    _save(_make_gemms(70), path)


def external_one_file(path: Path) -> None:
    onnx.save(_make_gemms(3, width=32), str(path), save_as_external_data=True, location="all.bin", size_threshold=0)


def external_many_files(path: Path) -> None:
    onnx.save(
        _make_gemms(3, width=32),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )


def external_in_subfolder(path: Path) -> None:
    (path.parent / "data").mkdir(exist_ok=True)
    model = _make_gemms(3, width=32)
    _place_outside(model, path.parent, "data/weights.bin")
    _save(model, path)


def external_without_length(path: Path) -> None:
    model = _make_gemms(1, width=32)
    _place_outside(model, path.parent, "w.raw", keys=("location",))
    _save(model, path)


def _place_outside(
    model: onnx.ModelProto, folder: Path, location: str, keys: tuple[str, ...] = ("location", "offset", "length")
) -> None:
    data = b"" if "offset" not in keys else b"header" * 100
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        places = {"location": location, "offset": str(len(data)), "length": str(len(raw))}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key in keys:
            tensor.external_data.add(key=key, value=places[key])
        data += raw
    (folder / location).write_bytes(data)


def external_constant(path: Path) -> None:
    """A Constant node whose tensor lies in a file, and one in the branch of an If."""
    raw = np.arange(64, dtype=np.float32)
    (path.parent / "constant.bin").write_bytes(raw.tobytes())
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[64], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="constant.bin")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=tensor),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["N", 64])],
        [info("y", TensorProto.FLOAT, ["N", 64])],
    )
    _save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)


def sparse_weight(path: Path) -> None:
    model = _make_gemms(1)
    del model.graph.initializer[:]
    values = numpy_helper.from_array(np.array([1.5, -2.0], np.float32), "w0")
    indices = numpy_helper.from_array(np.array([[0, 1], [3, 2]], np.int64), "w0_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    _save(model, path)


def weights_as_float_data(path: Path) -> None:
    """Weights in typed fields, as onnx.helper.make_tensor leaves them, not as raw bytes."""
    model = _make_gemms(1)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    del model.graph.initializer[:]
    model.graph.initializer.append(helper.make_tensor("w0", TensorProto.FLOAT, [4, 4], weight.ravel().tolist()))
    _save(model, path)


def metadata(path: Path) -> None:
    model = _make_gemms(1)
    helper.set_model_props(model, {"stride": "32", "names": "{0: 'person'}"})
    model.graph.doc_string, model.producer_name, model.domain = "doc", "keras2onnx", "ai.example"
    _save(model, path)


def function_in_branch(path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (bool c, float[N, 4] x) => (float[N, 4] y) {
            y = If (c) <then_branch = t () => (float[N, 4] a) { a = local.f(x) }, else_branch = e () =>
            (float[N, 4] b) { b = Neg(x) }>
        }
        <domain: "local", opset_import: ["": 17]> f (a) => (b) { h = Tanh(a) b = Mul(h, a) }"""
    )
    _save(model, path)


def weights_in_branch(path: Path) -> None:
    """Large weights in the bodies of an If, one of them read from outside it."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[N, 32] x) => (float[N, 32] y) {
            y = If (c) <then_branch = t () => (float[N, 32] a) { a = MatMul(x, inner) }, else_branch = e () =>
            (float[N, 32] b) { b = MatMul(x, outer) }>
        }"""
    )
    rng = np.random.default_rng(0)
    inner, outer = (rng.standard_normal((32, 32), dtype=np.float32) for _ in range(2))
    model.graph.node[0].attribute[0].g.initializer.append(numpy_helper.from_array(inner, "inner"))
    model.graph.initializer.append(numpy_helper.from_array(outer, "outer"))
    _save(model, path)


def shadowed_names(path: Path) -> None:
    """Both branches call their values by the same names, and by names of the main graph's later values."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[N, 4] x) => (float[N, 4] y) {
            h = If (c) <then_branch = t () => (float[N, 4] r) { q = Relu(x) r = Neg(q) }, else_branch = e () =>
            (float[N, 4] r) { q = Neg(x) r = Relu(q) }>
            y = Tanh(h)
        }"""
    )
    _save(model, path)


def _make_torch_cnn() -> tuple[object, tuple[object, ...]]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.InstanceNorm2d(4, affine=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ).eval()
    return net, (torch.randn(2, 3, 12, 12),)


def _make_torch_encoder() -> tuple[object, tuple[object, ...]]:
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
            self.head = nn.Linear(16, 5)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.layer(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
            return self.head(hidden.mean(1))

    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 7))
    return Encoder().eval(), (ids, torch.ones(2, 7, dtype=torch.int64))


def _make_torch_rnn() -> tuple[object, tuple[object, ...]]:
    import torch
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
            self.gru = nn.GRU(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden, _ = self.lstm(x)
            out, last = self.gru(hidden)
            return out, last

    torch.manual_seed(0)
    return Recurrent().eval(), (torch.randn(2, 5, 6),)


def _export_legacy(
    path: Path, model: object, arguments: tuple[object, ...], axes: Mapping[str, Mapping[int, str]], **options: object
) -> None:
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, str(path), dynamo=False, dynamic_axes=axes, **options)  # type: ignore[arg-type]


def _export_dynamo(path: Path, model: object, arguments: tuple[object, ...], **options: object) -> None:
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, str(path), dynamo=True, verbose=False, **options)  # type: ignore[arg-type]


def torch_legacy_cnn(path: Path) -> None:
    model, arguments = _make_torch_cnn()
    names: dict[str, object] = {"input_names": ["image"], "output_names": ["logits"]}
    _export_legacy(path, model, arguments, {"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=13, **names)


def torch_legacy_unnamed(path: Path) -> None:
    """No names given: the exporter numbers everything."""
    model, arguments = _make_torch_cnn()
    _export_legacy(path, model, arguments, {})


def torch_legacy_rnn(path: Path) -> None:
    model, arguments = _make_torch_rnn()
    _export_legacy(path, model, arguments, {"x": {0: "batch", 1: "time"}}, input_names=["x"], output_names=["out", "h"])


def torch_legacy_encoder(path: Path) -> None:
    model, arguments = _make_torch_encoder()
    axes = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
    _export_legacy(path, model, arguments, axes, input_names=list(axes), output_names=["logits"], opset_version=14)


def torch_dynamo_cnn(path: Path) -> None:
    model, arguments = _make_torch_cnn()
    _export_dynamo(path, model, arguments, dynamic_shapes=({0: "batch"},))


def torch_dynamo_encoder(path: Path) -> None:
    import torch

    model, arguments = _make_torch_encoder()
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    _export_dynamo(path, model, arguments, dynamic_shapes=(shape, shape))


def torch_dynamo_rnn(path: Path) -> None:
    model, arguments = _make_torch_rnn()
    _export_dynamo(path, model, arguments)


def half_precision(path: Path) -> None:
    """A model whose weights and interface are float16."""
    model = _make_gemms(2, width=8)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    _save(model, path)


def bfloat16_weights(path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 32] x) => (float[N, 32] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"""
    )
    weight = np.random.default_rng(0).standard_normal((32, 32), dtype=np.float32)
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.BFLOAT16, [32, 32], weight.ravel().tolist()))
    _save(model, path)


def contrib_attention(path: Path) -> None:
    """What ONNX Runtime's transformer optimiser leaves: fused contrib operators."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[B, T, 8] x, int32[B, T] mask) => (float[B, T, 8] y) {
            a = com.microsoft.Attention<num_heads = 2>(x, w, b, mask)
            y = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(a, x, g, c)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"w": (8, 24), "b": (24,), "g": (8,), "c": (8,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    _save(model, path)


def embedding(path: Path) -> None:
    """Ids of a small vocabulary: 0 and 1 are always legal, 2 is not."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64[batch, tokens] ids) => (float[batch, tokens, 4] y) { y = Gather(w, ids) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, 4, dtype=np.float32), "w"))
    _save(model, path)


BUILDERS: Mapping[str, Callable[[Path], None]] = {
    builder.__name__: builder
    for builder in (
        strange_names, nameless_nodes, duplicate_nodes, long_names, colliding_dim_names, strange_dim_names,
        negative_dim, rankless_input, same_output_twice, same_input_twice, two_names_for_one_value, many_weights,
        external_one_file, external_many_files, external_in_subfolder, external_without_length, external_constant,
        sparse_weight, weights_as_float_data, metadata, function_in_branch, weights_in_branch, shadowed_names,
        half_precision, bfloat16_weights, contrib_attention, embedding,
        torch_legacy_cnn, torch_legacy_unnamed, torch_legacy_rnn, torch_legacy_encoder,
        torch_dynamo_cnn, torch_dynamo_encoder, torch_dynamo_rnn,
    )
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """Write the model called `name`, and its external files, into `folder`."""
    path = folder / f"{name}.onnx"
    if name in TEXTS:
        _save(onnx.parser.parse_model(TEXTS[name]), path)
    else:
        BUILDERS[name](path)
    return path
