"""Reading files: structure without the onnx package, precision shares, and refusal of what is broken or hostile."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.inspect import inspect_engine, inspect_model
from engines.onnx_file import count_bits, read_onnx
from engines.precision import measure_shares, require_precision
from specs.errors import BuildError, GraphError
from specs.report import PrecisionShares
from tests.bundles import (
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


def test_engine_outside_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(b"plan")
    with pytest.raises(BuildError, match="this engine lies in no bundle"):
        inspect_engine(path)
