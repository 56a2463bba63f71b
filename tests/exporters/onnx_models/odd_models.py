"""ONNX files as other people make them: what exporters, converters and hands leave behind, each tiny.

`TEXTS` are written in ONNX's text form; `BUILDERS` need protobufs, external files or torch's exporters. `write(name,
folder)` writes one of either to `folder / "<name>.onnx"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.exporters.onnx_models.odd_texts import TEXTS
from tests.exporters.onnx_models.torch_models import (
    torch_dynamo_cnn,
    torch_dynamo_encoder,
    torch_dynamo_rnn,
    torch_legacy_cnn,
    torch_legacy_encoder,
    torch_legacy_rnn,
    torch_legacy_unnamed,
)


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
ALL = (*TEXTS, *BUILDERS)


def write(name: str, folder: Path) -> Path:
    """Write the model called `name`, and its external files, into `folder`."""
    path = folder / f"{name}.onnx"
    if name in TEXTS:
        _save(onnx.parser.parse_model(TEXTS[name]), path)
    else:
        BUILDERS[name](path)
    return path
