"""Files that other people made become a verified bundle that answers as they do, or one clear refusal, nothing left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import exporters.onnx_models.read
import exporters.passes
from engines.onnx_files.inspect import inspect_model
from engines.runtime import load
from metagen_deploy import pipeline
from specs.bundle import Manifest
from specs.errors import CalibrationError, GraphError, MetagenError, ParityError, SpecError
from specs.schema import Dim
from tests.exporters.onnx_models import odd_models
from tests.exporters.onnx_models.exporting import export, list_leftovers

pytestmark = pytest.mark.usefixtures("check_in_this_process")

#: Model -> what refuses it everywhere, and why.
REFUSED: dict[str, tuple[type[MetagenError], str]] = {
    "bfloat16_input": (GraphError, "input 'x' cannot be fed with arrays"),
    "string_input": (GraphError, "input 's' cannot be fed with arrays"),
    "string_output": (GraphError, r"output 'y' is not a tensor of numbers[\s\S]*tensor\(string\)"),
    "sequence_output": (GraphError, r"output 'y' is not a tensor of numbers[\s\S]*seq\(tensor\(float\)\)"),
    "optional_output": (GraphError, r"output 'y' is not a tensor of numbers[\s\S]*optional\(tensor\(float\)\)"),
    "opset12_dropout_trains": (GraphError, r"answers something else every time in 'y'[\s\S]*dropout in training mode"),
    "random_output": (GraphError, "answers something else every time in 'y'"),
    "unknown_domain": (GraphError, r"nothing defines[\s\S]*my\.company::SecretSauce 'y'"),
    "unknown_op": (GraphError, "No Op registered for Relux.*OpType: Relux"),
    "rankless_input": (GraphError, "input 'h0' does not say how many dimensions it has"),
    "same_output_twice": (GraphError, "2 outputs are called 'y'"),
    "same_input_twice": (GraphError, "'h0' has been used as graph input names multiple times"),
    "torch_legacy_encoder": (GraphError, r"batch 3, sequence 8[\s\S]*Reshape_4[\s\S]*--dim 'sequence=MIN:OPT:MAX'"),
}
#: What ONNX Runtime takes and TensorRT has no operators for.
NOT_FOR_TENSORRT = ("contrib", "contrib_attention", "sklearn")
#: What has no equivalent in the opset that TensorRT 8 reads.
NOT_FOR_TENSORRT_8 = ("opset23_rms",)
#: What ONNX Runtime refuses itself, and a repair makes usable: there is nothing to compare with.
REPAIRED = ("duplicate_nodes",)


def open_original(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def make_feed(manifest: Manifest, *, size: int = 2, seed: int = 7) -> dict[str, np.ndarray]:
    """Inputs that nobody saw while exporting: every dynamic dim is `size`."""
    rng = np.random.default_rng(seed)
    feed = {}
    for tensor in manifest.graphs[0].inputs:
        shape = [size if isinstance(d, str) else d for d in tensor.shape]
        drawn = rng.uniform(0.1, 1, shape) if np.dtype(tensor.dtype).kind == "f" else rng.integers(0, 2, shape)
        feed[tensor.name] = np.asarray(drawn).astype(tensor.dtype)
    return feed


def require_same_answers(path: Path, bundle: Path, manifest: Manifest, *, tolerance: float) -> None:
    original, feed = open_original(path), make_feed(manifest)
    names = [output.name for output in original.get_outputs()]
    assert [tensor.name for tensor in manifest.graphs[0].inputs] == [value.name for value in original.get_inputs()]
    assert [tensor.name for tensor in manifest.graphs[0].outputs] == names
    with load(bundle) as session:
        answers = session.run(feed)
    assert list(answers) == names
    for name, wanted in zip(names, original.run(None, feed), strict=True):
        assert answers[name].dtype == wanted.dtype
        assert answers[name].shape == wanted.shape
        assert np.allclose(answers[name], wanted, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("name", [name for name in odd_models.ALL if name not in REFUSED])
def test_a_bundle_answers_as_the_file_does(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    path, output = models(name), tmp_path / "o.bundle"
    targets = ["cpu", "rtx-4090", "jetson-orin-nx-16gb", "a100@trt8.6"]
    if name in NOT_FOR_TENSORRT:
        targets = targets[:1]
    elif name in NOT_FOR_TENSORRT_8:
        targets = targets[:-1]
    manifest, report = export(path, output, *targets)
    assert report.passed
    assert not report.not_run
    assert {typed.target for typed in manifest.graphs[0].typed} == set(targets)
    assert all(size for tensor in manifest.graphs[0].inputs for size in tensor.shape if isinstance(size, str))
    if name not in REPAIRED:
        require_same_answers(path, output, manifest, tolerance=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_clear_error(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    kind, words = REFUSED[name]
    with pytest.raises(kind, match=words) as caught:
        export(models(name), tmp_path / "o.bundle")
    assert str(models(name)) in str(caught.value)
    assert not list(list_leftovers(tmp_path))


@pytest.mark.parametrize("name", NOT_FOR_TENSORRT)
def test_contrib_operators_are_not_for_tensorrt(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"runs TensorRT, which has no operators of other domains[\s\S]*::\w+ '"):
        export(models(name), tmp_path / "o.bundle", "cpu", "rtx-4090")
    assert not list(list_leftovers(tmp_path))


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    """A small convolution net, written at each opset, for each way that targets read graphs."""
    model = onnx.parser.parse_model(
        f"""<ir_version: {3 if opset < 9 else 8}, opset_import: ["": {opset}]>
        g (float[N, 2, 6, 6] x) => (float[N, 3] y) <float[4, 2, 3, 3] w, float[3, 36] f> {{
            c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            t = Flatten(p) m = Gemm<transB = 1>(t, f, b) y = Softmax<axis = 1>(m)
        }}"""
    )
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    for name, shape in {"w": (4, 2, 3, 3), "f": (3, 36), "b": (3,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    manifest, _ = export(path, tmp_path / "o.bundle", "cpu", "a100@trt8.6", "a100", "rtx-4090")
    require_same_answers(path, tmp_path / "o.bundle", manifest, tolerance=1e-4)


@pytest.mark.parametrize(
    ("name", "size"), [("unnamed_equal_dims", "x_0 and z_0"), ("unnamed_dims", "x_1 and z_0")], ids=["rows", "inner"]
)
def test_dims_that_must_be_equal_are_found(name: str, size: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    manifest, _ = export(models(name), tmp_path / "o.bundle")
    assert set(size.split(" and ")) <= set(manifest.dims)


def test_dims_are_named_ranged_and_fixed(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = models("torch_legacy_encoder")
    dims = {"sequence": Dim(min=7, opt=7, max=7), "batch": Dim(min=1, opt=4, max=8)}
    manifest, _ = export(path, tmp_path / "o.bundle", dims=dims)
    assert manifest.dims == {"batch": (1, 4, 8)}
    assert [tensor.shape for tensor in manifest.graphs[0].inputs] == [("batch", 7), ("batch", 7)]
    require_same_answers(path, tmp_path / "o.bundle", manifest, tolerance=1e-4)
    with pytest.raises(SpecError, match=r"no dynamic dim 'bach'[\s\S]*did you mean 'batch'"):
        export(path, tmp_path / "p.bundle", dims={"bach": Dim(min=1, opt=1, max=1)})


def test_an_output_that_lies_about_its_shape_is_corrected(models: Callable[[str], Path], tmp_path: Path) -> None:
    manifest, _ = export(models("output_lies_about_its_dim"), tmp_path / "o.bundle")
    assert manifest.graphs[0].outputs[0].shape == ("N", "y_1")


def test_a_model_that_takes_no_negative_numbers_is_given_none(models: Callable[[str], Path], tmp_path: Path) -> None:
    export(models("nan_output"), tmp_path / "o.bundle")
    with np.load(tmp_path / "o.bundle/model/model.golden.npz") as golden:
        assert golden["input:x"].min() > 0


def test_an_answer_of_nan_is_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { h = Sub(x, x) y = Div(h, h) }'
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=r"the model itself answers NaN or infinity in 'y' on made-up inputs with N 3"):
        export(tmp_path / "m.onnx", tmp_path / "o.bundle")


@pytest.mark.parametrize(
    ("name", "precision"),
    [("half_precision", "fp16"), ("quantized_uint8", "int8"), ("matmul_integer", "int8"), ("static", "fp32")],
)
def test_a_file_keeps_its_own_precision(
    name: str, precision: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest, report = export(models(name), tmp_path / "o.bundle")
    assert manifest.graphs[0].precision == precision
    assert [typed.precision for typed in manifest.graphs[0].typed] == [precision]
    assert {row.precision for row in report.rows} == {precision}
    assert pipeline.build(tmp_path / "o.bundle", progress=lambda *_: None).rows


def test_fp32_cannot_be_made_of_fp16(models: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="fp32 was asked for, and the file computes in fp16"):
        export(models("half_precision"), tmp_path / "o.bundle", precisions=("fp32",))


def test_what_overflows_fp16_is_a_parity_error(models: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="output 'y' of model/model.rtx-4090-fp16.onnx is outside tolerance"):
        export(models("overflows_half"), tmp_path / "o.bundle", "rtx-4090", precisions=("fp16",))
    assert not list(list_leftovers(tmp_path))


def test_a_precision_that_is_not_reached_is_refused(models: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        GraphError, match=r"int8 was asked for, and onnxruntime can compute too little[\s\S]*100.0% fp32"
    ):
        export(models("torch_legacy_cnn"), tmp_path / "o.bundle", precisions=("int8",))
    assert not list(list_leftovers(tmp_path))


# Calibration.

IMAGES = np.random.default_rng(3).uniform(0, 1, (24, 3, 12, 12)).astype(np.float32)


def test_int8_with_real_calibration(models: Callable[[str], Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", image=IMAGES)
    manifest, report = export(
        models("torch_legacy_cnn"),
        tmp_path / "o.bundle",
        "rtx-4090",
        precisions=("int8",),
        calibration=tmp_path / "c.npz",
    )
    assert report.passed
    with np.load(tmp_path / "o.bundle/model/model.golden.npz") as golden:
        assert np.array_equal(golden["input:image"], IMAGES[:3]), "the golden data is the user's"
    shares = inspect_model(tmp_path / "o.bundle" / manifest.graphs[0].typed[0].file, {"batch": 1}).shares
    assert shares.compute["int8"] > 0.9


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (IMAGES[:0], "array 'image' has too few samples"),
        (IMAGES[..., :11], r"array 'image' has the wrong shape[\s\S]*\[24, 3, 12, 11\]"),
        (IMAGES.astype(np.float64), r"array 'image' has the wrong type[\s\S]*float64"),
        (IMAGES * np.float32(np.nan), "array 'image' holds NaN or infinity"),
        (np.float32(1), "array 'image' has the wrong shape"),
    ],
)
def test_calibration_that_does_not_fit(
    array: np.ndarray, words: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    np.savez(tmp_path / "c.npz", image=array)
    with pytest.raises(CalibrationError, match=words):
        export(models("torch_legacy_cnn"), tmp_path / "o.bundle", calibration=tmp_path / "c.npz")
    assert not list(list_leftovers(tmp_path))


def test_calibration_of_scalars_and_of_inputs_without_a_batch(models: Callable[[str], Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.arange(5, dtype=np.float32), v=np.ones((5, 3), np.float32))
    export(models("scalar_input"), tmp_path / "o.bundle", calibration=tmp_path / "c.npz")
    with np.load(tmp_path / "o.bundle/model/model.golden.npz") as golden:
        assert golden["input:x"].shape == ()
        assert golden["input:v"].shape == (3,)
    np.savez(tmp_path / "c.npz", x=np.arange(5, dtype=np.float32), v=np.ones((4, 3), np.float32))
    with pytest.raises(CalibrationError, match=r"different numbers of feeds[\s\S]*x \[5\] makes 5, v \[4, 3\] makes 4"):
        export(models("scalar_input"), tmp_path / "p.bundle", calibration=tmp_path / "c.npz")


# Reading.


def test_notes_say_what_was_repaired(models: Callable[[str], Path]) -> None:
    assert exporters.onnx_models.read.read_source(models("duplicate_nodes")).notes == (
        "3 nodes shared their names and were named apart",
    )
    assert exporters.onnx_models.read.read_source(models("overridable_default")).notes == (
        "input 'w' has a default and becomes a constant",
    )
    assert exporters.onnx_models.read.read_source(models("ir3_weights_are_inputs")).notes == ()


def test_unsorted_nodes_are_sorted(models: Callable[[str], Path], tmp_path: Path) -> None:
    model = onnx.load(models("many_weights"))
    nodes = onnx.GraphProto(node=list(reversed(model.graph.node)))
    del model.graph.node[:]
    model.graph.node.extend(nodes.node)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    manifest, _ = export(path, tmp_path / "o.bundle")
    require_same_answers(path, tmp_path / "o.bundle", manifest, tolerance=1e-4)


@pytest.mark.parametrize("name", ["keywords", "sparse_weight", "external_in_subfolder", "function", "if", "metadata"])
def test_damaged_bytes_are_graph_errors(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """A flipped byte gives a file that reads, or a GraphError; never anything else."""
    data, rng = models(name).read_bytes(), np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/weights.bin").write_bytes(bytes(20_000))
    refused = 0
    for place in rng.choice(len(data), 80):
        damaged = bytearray(data)
        damaged[place] = rng.integers(0, 256)
        (tmp_path / "m.onnx").write_bytes(damaged)
        try:
            exporters.onnx_models.read.read_source(tmp_path / "m.onnx")
        except GraphError:
            refused += 1
    assert refused


def test_names_are_utf_8(models: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(
        models("metadata").read_bytes().replace(b"keras2onnx", b"keras\xff\xff\xff\xff\xff")
    )
    with pytest.raises(GraphError, match="a producer_name of a ModelProto that is not UTF-8"):
        export(tmp_path / "m.onnx", tmp_path / "o.bundle")


def test_external_data_is_brought_along(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = models("external_in_subfolder")
    assert inspect_model(path).external_files == ("data/weights.bin",)
    assert inspect_model(path).weight_bytes == 3 * 32 * 32 * 4
    manifest, _ = export(path, tmp_path / "o.bundle")
    assert inspect_model(tmp_path / "o.bundle/model/model.onnx").external_files == ("weights.float.data",)
    assert manifest.files["model/weights.float.data"].bytes == 3 * 32 * 32 * 4


def test_multiply_accumulates_are_counted(models: Callable[[str], Path]) -> None:
    conv, depthwise, up, head = 8 * 144 * 27, 8 * 144 * 9, 8 * 24 * 24 * 16, 4 * 10
    for name in ("torch_legacy_cnn", "torch_dynamo_cnn"):
        assert inspect_model(models(name), {"batch": 1}).macs == conv + depthwise + up + head
    assert inspect_model(models("weights_in_branch"), {"N": 1}).macs == 2 * 32 * 32
    lstm = 2 * 2 * 5 * sum(4 * 8 * (inputs + 8) for inputs in (6, 16))  # directions x batch x time x gates
    gru = 2 * 5 * 3 * 4 * (16 + 4)
    assert inspect_model(models("torch_dynamo_rnn")).macs == lstm + gru
