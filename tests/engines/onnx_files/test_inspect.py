"""Reading files: structure without the onnx package, precision shares, and refusal of what is broken or hostile."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.onnx_files.inspect import inspect_model
from engines.onnx_files.macs import MACS
from engines.onnx_files.precision import find_own_precision, measure_shares, require_precision
from engines.onnx_files.read import read_onnx
from engines.onnx_files.records import Node, count_bits
from specs.errors import BuildError, GraphError
from specs.report import PrecisionShares
from tests.engines.bundles import (
    HEADS,
    LAYERS,
    TOKENS,
    WIDTH,
    make_model,
    make_weights,
    measure_magnitudes,
    save_external,
)

CLASSES = 10


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return make_weights()


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_reader_agrees_with_onnx(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = make_model(weights, portable=True)
    read = read_onnx(save(model, tmp_path / "m.onnx"))
    assert read.opsets == {o.domain: o.version for o in model.opset_import}
    assert [(n.op_type, n.name, n.inputs, n.outputs) for n in read.graph.nodes] == [
        (n.op_type, n.name, tuple(n.input), tuple(n.output)) for n in model.graph.node
    ]
    assert [(w.name, w.shape) for w in read.graph.weights] == [(t.name, tuple(t.dims)) for t in model.graph.initializer]
    assert [w.nbytes for w in read.graph.weights] == [numpy_helper.to_array(t).nbytes for t in model.graph.initializer]
    assert [(v.name, v.dtype, v.shape) for v in read.graph.inputs] == [("tokens", "float32", ("batch", TOKENS, WIDTH))]
    assert list(read.functions) == [("metagen", "MetagenAttention", "")]
    attributes = {n.name: dict(n.attributes) for n in read.graph.nodes}
    for node in model.graph.node:
        ints = {a.name: tuple(a.ints) for a in node.attribute if a.type == onnx.AttributeProto.INTS}
        assert {k: v for k, v in attributes[node.name].items() if k in ints} == ints


def test_inspection_counts_by_hand(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = inspect_model(save(make_model(weights, portable=True), tmp_path / "m.onnx"), {"batch": 3})
    inlined = onnx.inliner.inline_local_functions(make_model(weights, portable=True))
    assert found.inlined_nodes == sum(node.op_type != "Constant" for node in inlined.graph.node)
    assert found.inlined_nodes > sum(found.operators.values()), "the attention's body has more than one node"
    projections = TOKENS * WIDTH * (4 * WIDTH + 8 * WIDTH)  # q, k, v, o and the MLP's two
    attention = 2 * TOKENS * TOKENS * WIDTH
    assert found.macs == 3 * (LAYERS * (projections + attention) + WIDTH * CLASSES)
    assert found.custom_ops == {"metagen.MetagenAttention": True}
    assert found.operators["metagen.MetagenAttention"] == LAYERS
    assert found.shares.compute == {"fp32": 1.0}
    assert HEADS * LAYERS  # the block has heads; they do not change the count


def test_shares_of_each_precision(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).standard_normal((4, TOKENS, WIDTH)).astype(np.float32)
    ranges = measure_magnitudes(weights, tokens)
    half = measure_shares(save(make_model(weights, precision="fp16"), tmp_path / "h.onnx"))
    assert half.compute == {"fp16": 1.0} and half.nodes == {"fp16": 1.0} and half.weight_bytes == {"fp16": 1.0}
    quantised = measure_shares(save(make_model(weights, precision="int8", ranges=ranges), tmp_path / "q.onnx"))
    attention = 2 * TOKENS * TOKENS * WIDTH * LAYERS
    total = LAYERS * TOKENS * WIDTH * 12 * WIDTH + attention + WIDTH * CLASSES
    assert quantised.compute["int8"] == pytest.approx(1 - attention / total)
    assert quantised.weight_bytes["int8"] > 0.8


def test_precision_that_was_not_honoured_is_an_error() -> None:
    shares = PrecisionShares(nodes={}, weight_bytes={}, compute={"fp16": 0.25, "fp32": 0.75})
    with pytest.raises(BuildError) as caught:
        require_precision(shares, "fp16", where="m.onnx")
    assert str(caught.value) == (
        "fp16 was asked for, and the graph does not compute in it\n"
        "  where:   m.onnx\n"
        "  got:     75.0% fp32, 25.0% fp16 of the multiply-accumulates\n"
        "  allowed: at least 90.0% fp16: a few nodes may be kept in fp32 for their range\n"
        "  fix:     export it again with --precision fp16; precision is written in the typed graph"
    )


@pytest.mark.parametrize(
    ("precision", "other", "least"), [("fp32", "fp16", 0.999), ("fp16", "fp32", 0.9), ("int8", "fp16", 0.5)]
)
def test_how_much_must_be_honoured(precision: str, other: str, least: float) -> None:
    for share in (least + 1e-4, least - 1e-4):
        shares = PrecisionShares(nodes={}, weight_bytes={}, compute={precision: share, other: 1 - share})
        if share > least:
            require_precision(shares, precision, where="m.onnx")
        else:
            with pytest.raises(BuildError, match=f"{precision} was asked for"):
                require_precision(shares, precision, where="m.onnx")
    lower = PrecisionShares(nodes={}, weight_bytes={}, compute={"int8": 0.6, "fp16": 0.4})
    require_precision(lower, "fp16", where="m.onnx")  # lower still is what was asked for, and more
    with pytest.raises(BuildError):
        require_precision(lower, "fp32", where="m.onnx")


QUANTISED = """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
g (float[4,8] x) => (float[4,8] y) {{ {body} }}"""
QDQ = "xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z) "


@pytest.mark.parametrize(
    ("body", "compute"),
    [
        (QDQ + "w = DequantizeLinear (W, s, z) y = MatMul (xd, w)", {"int8": 1.0}),
        (QDQ + "w = DequantizeLinear (W, s, z) t = Transpose (w) y = MatMul (xd, t)", {"int8": 1.0}),
        (QDQ + "w = DequantizeLinear (W, s, z) n = Neg (w) y = MatMul (xd, n)", {"fp32": 1.0}),
        ("w = DequantizeLinear (W, s, z) y = MatMul (x, w)", {"fp32": 1.0}),  # weight only: computes in float
        (QDQ + "y = MatMul (xd, F)", {"fp32": 1.0}),
        ("y = com.microsoft.DynamicQuantizeMatMul (x, W, s, z)", {"int8": 1.0}),
        ("i = DynamicQuantizeLinear (x) y = MatMulInteger (i, W)", {"int8": 1.0}),
        (QDQ + "w = DequantizeLinear (W, s, z) a = MatMul (xd, w) b = MatMul (a, F) c = MatMul (b, F)"
         " y = MatMul (c, F)", {"fp32": 0.75, "int8": 0.25}),
    ],
)  # fmt: skip
def test_a_product_counts_as_what_it_computes_in(body: str, compute: dict[str, float], tmp_path: Path) -> None:
    model = onnx.parser.parse_model(QUANTISED.format(body=body))
    stored = {"W": np.ones((8, 8), np.int8), "F": np.ones((8, 8), np.float32), "s": np.float32(0.1), "z": np.int8(0)}
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), n) for n, v in stored.items() if n in used)
    path = save(model, tmp_path / "m.onnx")
    assert measure_shares(path).compute == compute
    assert find_own_precision(path) == ("int8" if "int8" in compute else "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_types_are_found_without_onnx_s_inference(
    precision: str, weights: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = measure_magnitudes(weights, np.ones((1, TOKENS, WIDTH), np.float32))
    path = save(make_model(weights, precision=precision, ranges=ranges), tmp_path / "m.onnx")
    inferred = measure_shares(path)
    monkeypatch.setattr("engines.onnx_files.precision._flatten", lambda model, sizes: model)
    guessed = measure_shares(path)
    assert (guessed.nodes, guessed.weight_bytes) == (inferred.nodes, inferred.weight_bytes)
    assert set(guessed.compute) == set(inferred.compute)


@pytest.mark.parametrize(
    ("op_type", "shapes", "attributes", "macs"),
    [
        ("MatMul", {"a": (2, 3, 4), "b": (4, 5), "y": (2, 3, 5)}, {}, 2 * 3 * 4 * 5),
        ("MatMul", {"a": (2, 3, 4), "b": (4, 5)}, {}, 2 * 3 * 4 * 5),
        ("Gemm", {"a": (3, 4), "b": (4, 5)}, {}, 60),
        ("Gemm", {"a": (3, 4), "b": (5, 4)}, {"transB": 1}, 60),
        ("MatMulNBits", {"a": (3, 4), "b": (5, 1, 16)}, {"N": 5}, 60),
        ("Conv", {"a": (1, 4, 9, 9), "b": (6, 2, 3, 3), "y": (1, 6, 7, 7)}, {}, 6 * 49 * 2 * 9),
        ("ConvTranspose", {"a": (1, 4, 5, 5), "b": (4, 3, 2, 2), "y": (1, 6, 10, 10)}, {}, 4 * 25 * 3 * 4),
        ("QLinearConv", {"a": (1, 4, 9, 9), "d": (6, 2, 3, 3), "y": (1, 6, 7, 7)}, {}, 6 * 49 * 2 * 9),
        ("QLinearMatMul", {"a": (3, 4), "d": (4, 5), "y": (3, 5)}, {}, 60),
        ("Attention", {"a": (2, 4, 5, 8), "b": (2, 2, 7, 8)}, {}, 2 * 2 * 4 * 5 * 8 * 7),
        ("Attention", {"a": (2, 5, 32), "b": (2, 7, 16)}, {}, 2 * 2 * 5 * 32 * 7),
        ("MetagenStepLinear", {"a": (3, 1, 4), "b": (4, 5), "c": (4, 2), "d": (4,)}, {"weights": 2}, 3 * 4 * (5 + 2)),
        ("MetagenStepLinear", {"a": (3, 4), "b": (5, 4)}, {"weights": 1, "transposed": 1}, 3 * 4 * 5),
        ("MetagenStepAttention", {"a": (2, 1, 32), "d": (2, 2, 9, 8)}, {"groups": 2}, 2 * 2 * 4 * 9 * 8),
        ("LSTM", {"a": (6, 2, 8), "b": (1, 40, 8), "c": (1, 40, 10)}, {}, 6 * 2 * (40 * 8 + 40 * 10)),
    ],
)
def test_multiply_accumulates_by_hand(
    op_type: str, shapes: dict[str, tuple[int, ...]], attributes: dict[str, int], macs: int
) -> None:
    node = Node(
        name="n", op_type=op_type, domain="", overload="", inputs=("a", "b", "c", "d"), outputs=("y",),
        attributes=attributes, constants=(), subgraphs=(), metadata={},
    )  # fmt: skip
    assert MACS[op_type](node, lambda name: shapes.get(name, ())) == macs


def test_every_truncation_is_refused(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = make_model(weights).SerializeToString()
    path = tmp_path / "m.onnx"
    for size in random.Random(0).sample(range(len(whole)), 60):
        path.write_bytes(whole[:size])
        try:
            read_onnx(path)
        except GraphError:
            continue
        # Cut exactly between two fields of the model: complete protobuf, and then the graph must be in it.
        onnx.checker.check_model(onnx.load(path))


def test_flipped_bytes_never_end_in_a_traceback(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = bytearray(make_model(weights, portable=True).SerializeToString())
    path = tmp_path / "m.onnx"
    rng = random.Random(1)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(8):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            inspect_model(path)
        except GraphError:
            continue


@pytest.mark.parametrize("location", ["../secret.data", "/etc/passwd", "a/../../b", "..\\b"])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path = save_with_weight(tensor, tmp_path / "m.onnx")
    with pytest.raises(GraphError) as caught:
        read_onnx(path)
    assert str(caught.value) == (
        f"the ONNX file names external data outside its own folder: {location!r}\n"
        f"  where:   {path}\n"
        "  allowed: relative paths below the folder of the ONNX file\n"
        "  fix:     do not use this file; export the model again"
    )


def save_with_weight(tensor: TensorProto, path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [tensor],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return path


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.data").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.data").symlink_to(tmp_path / "outside.data")
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "w.data"
    with pytest.raises(GraphError, match="outside its own folder"):
        read_onnx(save_with_weight(tensor, tmp_path / "model" / "m.onnx"))


def test_external_data_missing_or_short(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_external(make_model(weights), path)
    data = tmp_path / "m.data"
    assert read_onnx(path).list_external_files() == ("m.data",)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(GraphError, match="an external data file is too short"):
        read_onnx(path)
    data.unlink()
    with pytest.raises(GraphError) as caught:
        read_onnx(path)
    assert str(caught.value) == (
        "the external data of this ONNX file is missing\n"
        f"  where:   {data}\n"
        "  fix:     copy 'm.data' beside m.onnx: the weights lie in it"
    )


def test_bits_of_odd_types() -> None:
    assert [count_bits(d) for d in ("int4", "bool", "bfloat16", "float8_e4m3fn", "complex64")] == [4, 8, 16, 8, 64]
