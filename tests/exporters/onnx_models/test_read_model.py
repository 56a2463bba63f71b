"""read_model: any file in, a checked model or one clear error out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx_models.read import read_model
from exporters.passes import run_pipeline
from specs.errors import GraphError
from tests.passes_support import parse, random, run

TEXT = '<ir_version: 10, opset_import: ["": 18]> g (float[B,8] x) => (float[B,8] y) { h = MatMul (x, W) y = Relu (h) }'


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    ir.save(parse(TEXT, {"W": random(8, 8)}), path, external_data="model.data", size_threshold_bytes=0)
    return path


def read_problem(path: Path) -> str:
    with pytest.raises(GraphError) as caught:
        read_model(path)
    return str(caught.value)


def test_weights_are_not_read(model_path: Path) -> None:
    model = read_model(model_path)
    assert isinstance(model.graph.initializers["W"].const_value, ir.ExternalTensor)
    x = random(3, 8, seed=1)
    copied = run_pipeline(model, lowering="tensorrt-10", precision="fp16").model  # computed weights lie in the model
    assert np.allclose(run(copied, {"x": x})[0], np.maximum(x @ random(8, 8), 0), atol=2e-2)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(model_path: Path, share: float) -> None:
    data = model_path.read_bytes()
    model_path.write_bytes(data[: int(len(data) * share)])
    problem = read_problem(model_path)
    assert str(model_path) in problem


@pytest.mark.parametrize("data", [b"", b"not onnx at all", b"\x00" * 64, b"\x89PNG\r\n\x1a\n", "größe".encode()])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert str(path) in read_problem(path)


def test_no_file(tmp_path: Path) -> None:
    assert read_problem(tmp_path / "none.onnx").startswith("no such ONNX file")
    assert read_problem(tmp_path).startswith("this is not a file")


@pytest.mark.parametrize("opset", [1, 6, 999])
def test_an_opset_nobody_reads(model_path: Path, opset: int) -> None:
    proto = onnx.load(model_path, load_external_data=False)
    proto.opset_import[0].version = opset
    model_path.write_bytes(proto.SerializeToString())
    assert read_problem(model_path).startswith(f"opset {opset} is not supported")


def test_missing_data(model_path: Path) -> None:
    (model_path.parent / "model.data").unlink()
    assert read_problem(model_path).startswith("the file with the data of 'W' is missing")


def test_truncated_data(model_path: Path) -> None:
    data = model_path.parent / "model.data"
    data.write_bytes(data.read_bytes()[:-1])
    assert read_problem(model_path).startswith("the data of 'W' is truncated")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret"])
def test_data_outside_the_folder(model_path: Path, location: str) -> None:
    proto = onnx.load(model_path, load_external_data=False)
    next(entry for entry in proto.graph.initializer[0].external_data if entry.key == "location").value = location
    model_path.write_bytes(proto.SerializeToString())
    assert read_problem(model_path).startswith("the data of 'W' lies outside the model's folder")


def test_a_tensor_that_contradicts_its_shape(tmp_path: Path) -> None:
    proto = ir.to_proto(parse(TEXT, {"W": random(64, 64)}))
    proto.graph.initializer[0].dims[0] = 65
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert "'W': 16384 bytes, its shape has 16640" in read_problem(tmp_path / "model.onnx")


def test_a_name_that_is_defined_twice(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(TEXT.replace("y = Relu (h)", "h = Relu (x) y = Relu (h)"))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert read_problem(tmp_path / "model.onnx").startswith("the file is not a valid ONNX model")


def test_sparse_weights_become_dense(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "W")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 2]), "indices"), [2, 2])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"], name="n")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )
    graph.sparse_initializer.append(sparse)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    model = run_pipeline(read_model(path), lowering="onnxruntime", precision="fp32").model
    assert run(model, {"x": np.array([[1.0, 10.0]], np.float32)})[0].tolist() == [[30.0, 2.0]]


def test_an_output_may_leave_its_shape_to_the_runtime(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx").graph.outputs[0].shape is None


@pytest.mark.parametrize("twice", [False, True])
def test_the_standard_domain_may_have_its_long_name(twice: bool, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["ai.onnx": 17]> g (float[N, 4] x) => (float[N, 4] y) { y = ai.onnx.Relu(x) }'
    )
    assert model.graph.node[0].domain == "ai.onnx"
    if twice:
        model.opset_import.append(helper.make_opsetid("", 17))
    onnx.save(model, tmp_path / "m.onnx")
    read = read_model(tmp_path / "m.onnx")
    assert dict(read.opset_imports) == {"": 17}
    assert [node.domain for node in read.graph] == [""]
