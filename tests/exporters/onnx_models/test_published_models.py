"""What made published ONNX files fail, on small models that do the same: they work, or the refusal says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.checking.compare import StageName, judge_difference, measure_difference
from engines.checking.judge import judge_outputs
from engines.runtime import load
from exporters.onnx_models.probabilities import list_probabilities
from exporters.onnx_models.read import read_model, read_source
from exporters.onnx_models.reference import find_reference
from exporters.onnx_models.run_apart import move_last_place, move_weights
from metagen_deploy import bench, pipeline
from metagen_deploy.cli import run_command
from metagen_deploy.verdict import raise_first_failure
from specs.bundle import IoTensor, Manifest
from specs.errors import GraphError, ParityError
from specs.report import ParityReport
from specs.schema import Dim
from tests.exporters.onnx_models import published_models

pytestmark = pytest.mark.usefixtures("check_in_this_process")


def export(
    name: str, folder: Path, *targets: str, dims: Mapping[str, Dim] | None = None, calibration: Path | None = None
) -> Manifest:
    manifest, report = pipeline.export(
        str(published_models.write(name, folder)),
        output=folder / "o.bundle",
        targets=targets or ("cpu",),
        dims=dims,
        calibration=calibration,
        progress=lambda *_: None,
    )
    assert report.passed
    return manifest


def run(folder: Path, **feed: np.ndarray) -> np.ndarray:
    with load(folder / "o.bundle") as session:
        return np.asarray(session.run(feed)["y"])


def test_a_crash_on_one_made_up_size_is_survived(tmp_path: Path) -> None:
    export("crashes_on_one_size", tmp_path)
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert np.array_equal(run(tmp_path, x=x), np.cumsum(x[3:].T, axis=1))


def test_a_crash_on_all_of_them_is_a_refusal_with_a_size_that_runs(tmp_path: Path) -> None:
    with pytest.raises(GraphError) as caught:
        export("crashes_on_small_sizes", tmp_path)
    assert caught.value.got == "ONNX Runtime crashes: SIGFPE (Floating point exception)"
    assert "it runs, for one, with --dim 'T=32:32:32'" in (caught.value.fix or "")
    assert not [path for path in tmp_path.iterdir() if "bundle" in path.name]
    export("crashes_on_small_sizes", tmp_path, dims={"T": Dim(min=32, opt=32, max=32)})


def test_a_size_of_the_samples_needs_no_option(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.ones((6, 2, 40), np.float32))
    export("crashes_on_small_sizes", tmp_path, calibration=tmp_path / "c.npz")
    assert run(tmp_path, x=np.ones((2, 40), np.float32)).shape == (2, 10)


def test_sizes_of_no_name_are_not_equal(tmp_path: Path) -> None:
    manifest = export("unknown_sizes", tmp_path, "cpu", "rtx-4090")
    assert manifest.graphs[0].inputs[0].shape == ("N", 3, "x_2", "x_3")
    assert run(tmp_path, x=np.ones((1, 3, 4, 7), np.float32)).shape == (1, 3, 3, 6)


def test_an_integer_is_what_the_model_asks_for(tmp_path: Path) -> None:
    export("asks_for_a_rate", tmp_path)
    with np.load(tmp_path / "o.bundle/model/model.golden.npz") as golden:
        assert golden["input:sr"] == 16000


@pytest.mark.parametrize("target", ["cpu", "rtx-4090", "a100@trt8.6"])
def test_one_size_does_not_break_a_branch_that_it_makes_unreachable(target: str, tmp_path: Path) -> None:
    manifest = export("squeezes_a_size", tmp_path, target, dims={"T": Dim(min=6, opt=6, max=6)})
    assert manifest.graphs[0].inputs[0].shape == ("N", 6)
    assert run(tmp_path, x=np.ones((2, 6), np.float32)).shape == (6, 2)


# Probabilities.


def test_an_output_that_is_a_probability_is_recorded_as_one(tmp_path: Path) -> None:
    manifest = export("detects_nothing", tmp_path, "cpu", "rtx-4090")
    assert manifest.graphs[0].probabilities == ("y",)


NOTHING = [1e-6, 2e-7, 3e-6, 1e-6]
TAGS = [0.02, 0.05, 0.03, 0.01]  # of a thousand, none of them sure


@pytest.mark.parametrize(
    ("precision", "reference", "value", "right"),
    [
        ("fp32", NOTHING, [1.9e-6, 2e-7, 3e-6, 1e-6], True),
        ("fp32", NOTHING, [2.1e-6, 2e-7, 3e-6, 1e-6], False),
        ("fp16", NOTHING, [1e-3, 0, 3e-6, 1e-6], True),
        ("fp16", NOTHING, [3e-3, 2e-7, 3e-6, 1e-6], False),
        ("int8", NOTHING, [1e-2, 0, 3e-6, 1e-6], True),
        ("int8", NOTHING, [6e-2, 2e-7, 3e-6, 1e-6], False),
        ("bf16", TAGS, [0.021, 0.049, 0.0305, 0.01], True),
        ("int8", TAGS, [0.03, 0.06, 0.03, 0.02], True),
        ("fp16", TAGS, [0.05, 0.02, 0.01, 0.03], False),  # the right numbers in the wrong places
        ("int8", TAGS, [0.05, 0.02, 0.01, 0.06], False),
        ("int8", [0.999, 0.998, 0.999, 0.999], [0.5, 0.998, 0.999, 0.999], False),
        ("fp16", [0.9999, 0.001, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5], True),
        ("int8", NOTHING, [float("nan"), 2e-7, 3e-6, 1e-6], False),
    ],
)
def test_a_probability_is_judged_by_its_logit(
    precision: str, reference: list[float], value: list[float], right: bool, tmp_path: Path
) -> None:
    (graph,) = export("detects_nothing", tmp_path, "cpu").graphs
    where = StageName(graph="g", stage="s", backend="onnxruntime", precision=precision)
    given = {"y": np.array(value, np.float32)}, {"y": np.array(reference, np.float32)}

    def judge(probabilities: tuple[str, ...]) -> bool:
        listed = replace(graph, probabilities=probabilities, noise_floor={})
        (row,) = judge_outputs(where, listed, *given, parity={})
        return row.passed

    assert judge(("y",)) == right
    assert reference is not NOTHING or not judge(())


@pytest.mark.parametrize(
    ("body", "bounded"),
    [
        ("y = Sigmoid(x)", True),
        ("s = Sigmoid(x) t = Sigmoid(x) p = Mul(s, t) y = Transpose(p)", True),
        ("y = Softmax(x)", False),
        ("s = Sigmoid(x) y = Concat<axis = 1>(x, s)", False),
        ("s = Softmax(x) y = Log(s)", False),
        ("s = Sigmoid(x) y = Add(s, s)", False),
        ("s = Sigmoid(x) k = Constant<value_ints = [2]>() v, y = TopK(s, k)", False),
        ("y = Relu(x)", False),
    ],
)
def test_which_outputs_are_probabilities(body: str, bounded: bool, tmp_path: Path) -> None:
    kind = "int64" if "TopK" in body else "float"
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => ({kind}[A, B] y) {{ {body} }}'
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert list_probabilities(read_model(tmp_path / "m.onnx")) == (("y",) if bounded else ())


# The noise floor.


def test_moved_weights_are_one_last_place_away_and_small_tensors_stay(tmp_path: Path) -> None:
    model = onnx.load(published_models.write("detects_nothing", tmp_path))
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    move_weights(model, np.random.default_rng(0))
    after = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert np.array_equal(after["bias"], before["bias"])
    units = np.abs(after["w"] - before["w"]) / np.spacing(np.abs(before["w"]))
    assert (
        units.min() >= 1 and units.max() <= 2 and (after["w"] > before["w"]).any() and (after["w"] < before["w"]).any()
    )
    assert np.array_equal(move_last_place(np.array([0, np.inf], np.float32), np.random.default_rng(0)), [0, np.inf])


def test_the_floor_is_near_the_distance_to_float64(tmp_path: Path) -> None:
    """A chain of products: moved weights make what rounding makes, within a factor of four either way."""
    rng, width = np.random.default_rng(3), 64
    weights = [(rng.standard_normal((width, width)) / 8).astype(np.float32) for _ in range(6)]
    text = " ".join(f"m{i} = MatMul(h{i}, w{i}) h{i + 1} = Tanh(m{i})" for i in range(6))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N, {width}] h0) => (float[N, {width}] h6) {{ {text} }}'
    )
    for index, weight in enumerate(weights):
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    inputs = (IoTensor(name="h0", dtype="float32", shape=("N", width)),)
    found = find_reference(read_source(tmp_path / "m.onnx"), inputs, {"N": Dim(min=1, opt=1, max=16)}, [])
    exact = found.feed["h0"].astype(np.float64)
    for weight in weights:
        exact = np.tanh(exact @ weight.astype(np.float64))
    distance = float(np.abs(found.outputs["h6"] - exact).max())
    assert distance / 4 < found.noise_floor["h6"] < 4 * distance


def test_the_sharpest_sample_is_the_reference(tmp_path: Path) -> None:
    """The first sample cancels to noise; the second shows an error."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 64] x) => (float[1, 1] y) { y = MatMul(x, w) }'
    )
    weight = np.linspace(1, 2, 64, dtype=np.float32)[:, None]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    clear = np.ones((1, 64), np.float32)
    blurred = clear.copy()
    blurred[0, 0] = -float(weight[1:].sum(dtype=np.float64))
    inputs = (IoTensor(name="x", dtype="float32", shape=(1, 64)),)
    source = read_source(tmp_path / "m.onnx")
    for samples in ([{"x": blurred}, {"x": clear}], [{"x": clear}, {"x": blurred}]):
        assert np.array_equal(find_reference(source, inputs, {}, samples).feed["x"], clear)


# What a refusal says to do next.


def fail(precision: str) -> ParityReport:
    where = StageName(graph="model", stage="model/model.onnx", backend="onnxruntime", precision=precision)
    difference = measure_difference("y", np.array([2.0]), np.array([1.0]))
    row = judge_difference(where, difference, exact=False, floor=None, parity={})
    return ParityReport(bundle="b", rows=(row,))


@pytest.mark.parametrize(
    ("precision", "calibrated", "fix"),
    [
        ("fp32", False, "these inputs were made up: give real ones, 64 or more, by --calibration FILE.npz"),
        ("int8", False, "by --calibration FILE.npz; or leave --precision int8 away"),
        ("fp32", True, "the file itself may answer with noise on these samples"),
        ("fp16", True, "your own samples lose this much in fp16: ask for a higher precision"),
    ],
)
def test_a_file_has_no_spec_to_widen(precision: str, calibrated: bool, fix: str) -> None:
    with pytest.raises(ParityError) as caught:
        raise_first_failure(fail(precision), own_file=True, calibrated=calibrated)
    assert fix in (caught.value.fix or "") and "spec" not in (caught.value.fix or "")


@pytest.mark.parametrize("block", [0, 32])
def test_int4_weights_are_multiplied_in_float32(block: int, tmp_path: Path) -> None:
    """ONNX Runtime's default rounds the inputs of such products to 8 bits: 2 % of the rms away, and refused."""
    rng, width = np.random.default_rng(0), 64
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[N, {width}] x) => (float[N, {width}] y) {{'
        f" e = DequantizeLinear<{f'axis = 0, block_size = {block}' if block else 'axis = 1'}>(w, s) y = MatMul(x, e) }}"
    )
    codes = rng.integers(-7, 8, (width, width))
    scales = rng.uniform(0.05, 0.2, (width // block, width) if block else width).astype(np.float32)
    kind = onnx.TensorProto.INT4
    model.graph.initializer.append(onnx.helper.make_tensor("w", kind, codes.shape, codes.reshape(-1).tolist()))
    model.graph.initializer.append(onnx.numpy_helper.from_array(scales, "s"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    _, report = pipeline.export(
        str(tmp_path / "m.onnx"), output=tmp_path / "o.bundle", targets=("cpu", "rtx-4090"), progress=lambda *_: None
    )
    assert report.passed
    x = rng.standard_normal((2, width), dtype=np.float32)
    weight = codes * (np.repeat(scales, block, axis=0) if block else scales)
    np.testing.assert_allclose(run(tmp_path, x=x), x @ weight, atol=1e-5)


def test_bench_times_the_file_itself_at_one_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are called N here, and the golden data has three."""
    manifest = export("squeezes_a_size", tmp_path, dims={"T": Dim(min=6, opt=6, max=6)})
    monkeypatch.setattr(bench, "_MIN_ROUNDS", 2)
    monkeypatch.setattr(bench, "_SECONDS", 0.0)
    assert run_command(["bench", str(tmp_path / "o.bundle"), "--against", "stock-onnx"]) == 0
    said = capsys.readouterr().out
    assert "latency at batch 1 on" in said
    assert [line.split()[0] for line in said.splitlines() if " ms " in line] == ["ours,", "stock-onnx"]
    feed = bench.read_single_sample(tmp_path / "o.bundle", manifest, manifest.graphs[0])
    assert feed["x"].shape == (1, 6)


def test_a_loop_of_neither_condition_nor_state(tmp_path: Path) -> None:
    """onnx_ir drops inputs at the end that are empty; a Loop with one input crashed onnx's inference."""
    body = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        b (int64 i, bool c) => (bool next, float[N, 4] o, float[N, 4] p) {
            next = Identity(c) f = Cast<to = 1>(i) o = Add(x, f) p = Neg(o) }"""
    ).graph
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[S, N, 4] y, float[S, N, 4] z)
        <int64 count = {3}> { y = Identity(x) z = Identity(x) }"""
    )
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("Loop", ["count", ""], ["y", "z"], body=body))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    _, report = pipeline.export(
        str(tmp_path / "m.onnx"), output=tmp_path / "o.bundle", targets=("cpu", "rtx-4090"), progress=lambda *_: None
    )
    assert report.passed
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.array_equal(run(tmp_path, x=x), np.stack([x, x + 1, x + 2]))
