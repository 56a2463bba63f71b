"""The parity gates bite: a right graph passes at every precision, and every mutant of it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engines.backends import load_backend
from engines.backends.base import Availability
from engines.checking.compare import StageName
from engines.checking.judge import judge_outputs
from engines.checking.parity import REPORT_NAME, check_bundle, write_report
from engines.checking.stages import restore_interface
from specs.bundle import EngineFile, IoTensor, Manifest
from specs.bundle.files import index_files, read_manifest, verify_files, write_manifest
from specs.errors import BundleError
from specs.report import ParityReport
from specs.system.child_process import ROOT
from tests.engines.bundles import (
    OUTPUTS,
    SCALE,
    TOKENS,
    WIDTH,
    Mutant,
    make_model,
    make_weights,
    measure_magnitudes,
    run_torch,
    write_bundle,
)

WHERE = StageName(graph="g", stage="s", backend="onnxruntime", precision="fp32")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return make_weights()


@pytest.fixture(scope="module")
def ranges(weights: dict[str, np.ndarray]) -> dict[str, float]:
    tokens = np.random.default_rng(9).standard_normal((8, TOKENS, WIDTH)).astype(np.float32)
    return measure_magnitudes(weights, tokens)


def check_model(folder: Path, models: Mapping[str, onnx.ModelProto]) -> ParityReport:
    write_bundle(folder / "b", {("cpu", precision): model for precision, model in models.items()})
    return check_bundle(folder / "b")


def test_a_right_graph_passes_at_every_precision(
    weights: dict[str, np.ndarray], ranges: dict[str, float], tmp_path: Path
) -> None:
    models = {p: make_model(weights, precision=p, ranges=ranges) for p in ("fp32", "fp16", "int8")}
    write_bundle(tmp_path / "b", {("cpu", p): m for p, m in models.items()}, labels=True)
    report = check_bundle(tmp_path / "b")
    assert report.passed, report.summarise()
    assert len(report.rows) == 4 * len(OUTPUTS)
    assert [(m.precision, m.samples, m.reference) for m in report.metrics] == [
        (precision, 101, report.metrics[0].value) for precision in ("fp32", "fp32", "fp16", "int8")
    ]
    assert 0.85 < report.metrics[0].value < 0.95  # one label of ten is wrong on purpose
    needed = {row.precision: row.needed_relative for row in report.rows}
    assert needed["fp32"] < 1e-5 < needed["fp16"] < 1e-2 < needed["int8"] < 0.3
    assert report.versions["onnxruntime"]


@pytest.mark.parametrize(
    ("mutant", "precisions", "tensor"),
    [
        pytest.param(Mutant(scale=SCALE * 2**0.5), ("fp32", "fp16", "int8"), "0.mixed", id="scale"),
        pytest.param(Mutant(tanh_gelu=True), ("fp32",), "0.gelu.inner", id="gelu"),
        pytest.param(Mutant(drop_mask=True), ("fp32", "fp16", "int8"), "0.mixed", id="mask"),
        pytest.param(Mutant(permute_heads=True), ("fp32", "fp16", "int8"), "0.mixed", id="heads"),
        pytest.param(Mutant(zero_point=5), ("int8",), "0.q_flat", id="zero point"),
        pytest.param(Mutant(double_logits=True), ("fp32", "fp16", "int8"), "logits", id="doubled"),
        pytest.param(Mutant(nan=True), ("fp32", "fp16", "int8"), "logits", id="NaN"),
        pytest.param(Mutant(swap_outputs=True), ("fp32", "fp16", "int8"), None, id="swapped"),
    ],
)
def test_a_mutant_fails(
    mutant: Mutant,
    precisions: tuple[str, ...],
    tensor: str | None,
    weights: dict[str, np.ndarray],
    ranges: dict[str, float],
    tmp_path: Path,
) -> None:
    models = {p: make_model(weights, precision=p, ranges=ranges, mutant=mutant) for p in precisions}
    report = check_model(tmp_path, models)
    assert not report.passed
    for precision in precisions:
        stage = f"block/model.cpu-{precision}.onnx"
        assert any(not row.passed and row.reason for row in report.rows if row.stage == stage), precision
        found = report.divergences.get(stage)
        assert (found.tensor if found else None) == tensor, precision
    assert all(row.passed for row in report.rows if row.stage == "block/model.onnx")


def test_the_divergence_names_its_module(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    report = check_model(tmp_path, {"fp32": make_model(weights, mutant=Mutant(tanh_gelu=True))})
    found = report.divergences["block/model.cpu-fp32.onnx"]
    assert (found.op_type, found.module_path) == ("Mul", "layers.mlp")
    assert found.difference.max_abs > 1e-3


def test_a_wrong_output_name_or_order_says_both(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    report = check_model(tmp_path, {"fp32": make_model(weights, mutant=Mutant(swap_outputs=True))})
    reasons = {row.reason for row in report.rows if not row.passed}
    assert reasons == {"the outputs are features, logits, the manifest has logits, features"}


def test_values_swapped_under_the_right_names_fail(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "b", {})
    tokens = np.random.default_rng(0).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    golden = run_torch(weights, tokens, torch.float32)
    swapped = {"logits": golden["features"], "features": golden["logits"]}
    rows = judge_outputs(WHERE, manifest.graphs[0], swapped, golden, {})
    assert [row.reason for row in rows] == [
        "shape (2, 6, 32), the golden data has (2, 10)",
        "shape (2, 10), the golden data has (2, 6, 32)",
    ]


def test_what_a_graph_declares_decides_how_it_is_judged(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Shapes exactly, integers exactly, floats within their own noise floor."""
    graph = write_bundle(tmp_path / "b", {}).graphs[0]
    golden = run_torch(weights, np.ones((1, TOKENS, WIDTH), np.float32), torch.float32)
    flat = {**golden, "features": golden["features"].reshape(1, WIDTH, TOKENS)}
    assert [row.passed for row in judge_outputs(WHERE, graph, flat, golden, {})] == [True, False]
    rms = float(np.sqrt(np.mean(np.square(golden["logits"]))))
    near = {**golden, "logits": golden["logits"] + np.float32(2e-5 * rms)}
    sharp, open_ = (replace(graph, noise_floor={"logits": floor * rms}) for floor in (1e-7, 1e-5))
    assert not judge_outputs(WHERE, sharp, near, golden, {})[0].passed
    assert judge_outputs(WHERE, open_, near, golden, {})[0].passed
    counts = replace(graph, outputs=(IoTensor(name="count", dtype="int64", shape=("batch",)),))
    for off in (0, 1):
        million = {"count": np.array([10**6, 10**6])}
        (row,) = judge_outputs(WHERE, counts, {"count": million["count"] + [0, off]}, million, {})
        assert row.passed == (not off)


def test_an_engine_s_outputs_are_put_back_into_the_manifest_s_order_and_types(tmp_path: Path) -> None:
    graph = replace(
        write_bundle(tmp_path / "b", {}).graphs[0],
        outputs=(
            IoTensor(name="a", dtype="int64", shape=(2,)),
            IoTensor(name="b", dtype="int32", shape=(2,)),
            IoTensor(name="c", dtype="float32", shape=(2,)),
        ),
    )
    small = np.array([1, 2], np.int32)
    restored = restore_interface(graph, {"extra": small, "c": small.astype(np.float32), "b": small, "a": small})
    assert [(name, value.dtype.name) for name, value in restored.items()] == [
        ("a", "int64"), ("b", "int32"), ("c", "float32"), ("extra", "int32"),
    ]  # fmt: skip


def test_another_dtype_fails(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "b", {})
    tokens = np.zeros((1, TOKENS, WIDTH), np.float32)
    golden = run_torch(weights, tokens, torch.float32)
    half = {name: value.astype(np.float16) for name, value in golden.items()}
    rows = judge_outputs(WHERE, manifest.graphs[0], half, golden, {})
    assert {row.reason for row in rows} == {"dtype float16, the manifest has float32"}


def test_a_truncated_graph_is_refused_by_its_digest(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", {("cpu", "fp32"): make_model(weights)})
    path = tmp_path / "b/block/model.cpu-fp32.onnx"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match="truncated or changed"):
        check_bundle(tmp_path / "b")


def test_a_changed_external_tensor_is_refused(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", {("cpu", "fp32"): make_model(weights)})
    path = tmp_path / "b/block/model.cpu-fp32.data"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="a file of the bundle was changed"):
        check_bundle(tmp_path / "b")


def test_weights_that_the_manifest_does_not_list_are_refused(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Nobody would have compared them with a digest."""
    folder = tmp_path / "b"
    manifest = write_bundle(folder, {("cpu", "fp32"): make_model(weights)})
    listed = {name: entry for name, entry in manifest.files.items() if not name.endswith(".data")}
    write_manifest(folder, replace(manifest, files=listed))
    with pytest.raises(BundleError, match="not listed in the manifest"):
        check_bundle(folder)


def test_a_graph_that_does_not_run_is_a_failure(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = make_model(weights)
    last = next(n for n in model.graph.node if n.op_type == "Gather" and n.output[0] == "last_token")
    last.input[1] = "beyond"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(TOKENS + 3), "beyond"))
    report = check_model(tmp_path, {"fp32": model})
    failed = [row for row in report.rows if not row.passed]
    assert len(failed) == len(OUTPUTS) and not report.passed
    assert all(row.reason.startswith("does not run: ") for row in failed)


def test_a_graph_that_does_not_load_is_a_failure(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = make_model(weights)
    next(n for n in model.graph.node if n.op_type == "Softmax").op_type = "Softmix"
    report = check_model(tmp_path, {"fp32": model})
    failed = [row for row in report.rows if not row.passed]
    assert len(failed) == len(OUTPUTS)
    assert all("does not load: ONNX Runtime refuses this graph" in row.reason for row in failed)


def test_golden_data_that_lacks_an_output(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write_bundle(folder, {})
    path = folder / "block/model.golden.npz"
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "output:features"}
    np.savez(path, **kept)
    write_manifest(folder, replace(read_manifest(folder), files=index_files(folder)))
    with pytest.raises(BundleError, match=r"the golden data of graph 'block' lacks output:features"):
        check_bundle(folder)


def test_golden_data_is_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write_bundle(folder, {})
    np.savez(folder / "block/model.golden.npz", **{"input:tokens": np.array([{"a": 1}], dtype=object)})
    write_manifest(folder, replace(read_manifest(folder), files=index_files(folder)))
    with pytest.raises(BundleError, match="reference data cannot be read"):
        check_bundle(folder)


def add_engine(folder: Path, manifest: Manifest) -> None:
    file = "block/model.h200-fp16.tensorrt.plan"
    (folder / file).write_bytes(b"no plan")
    engine = EngineFile(
        target="h200", precision="fp16", backend="tensorrt", backend_version="10.13", compute_capability="9.0",
        gpu="H200", file=file, key="0", build_seconds=1.0,
    )  # fmt: skip
    graph = replace(manifest.graphs[0], engines=(engine,))
    write_manifest(folder, replace(manifest, graphs=(graph,), files=index_files(folder)))


def test_an_engine_for_another_machine_is_listed_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    add_engine(folder, write_bundle(folder, {}))
    report = check_bundle(folder)
    assert report.passed and list(report.not_run) == ["block/model.h200-fp16.tensorrt.plan"]
    assert report.not_run["block/model.h200-fp16.tensorrt.plan"].startswith("tensorrt: ")
    only = check_bundle(folder, backends=("tensorrt",))
    assert not only.rows and not only.passed  # nothing ran, so nothing is proved


def test_what_a_lower_precision_loses_is_counted_from_fp32(
    weights: dict[str, np.ndarray], ranges: dict[str, float], tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    wrong = make_model(weights, precision="int8", ranges=ranges, mutant=Mutant(permute_heads=True))
    write_bundle(folder, {("cpu", "fp16"): make_model(weights, precision="fp16"), ("cpu", "int8"): wrong}, labels=True)
    first = check_bundle(folder)
    values = {metric.stage.rpartition("-")[2]: metric for metric in first.metrics}
    fp32 = values["block/model.onnx"]
    assert all(metric.reference == fp32.value for metric in first.metrics)
    assert values["fp16.onnx"].passed and not values["int8.onnx"].passed
    # An earlier report gives the reference where fp32 does not run; it never replaces what is measured here.
    stale = replace(first, metrics=tuple(replace(metric, reference=0.1) for metric in first.metrics))
    assert write_report(folder, stale)
    assert all(metric.reference == fp32.value for metric in check_bundle(folder).metrics)
    only = check_bundle(folder, backends=("tensorrt-rtx",))
    assert [metric.stage for metric in only.metrics] == ["block/model.onnx"], "the reference always runs"


def test_an_engine_is_run_only_on_its_own_kind_of_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "b"
    add_engine(folder, write_bundle(folder, {}))
    other = Availability(
        backend="tensorrt", version="10.13", can_compile=True, can_run=True, device="NVIDIA L4 (SM 8.9)"
    )
    monkeypatch.setattr(load_backend("tensorrt"), "probe", lambda: other)
    (reason,) = check_bundle(folder).not_run.values()
    assert reason == "tensorrt: the engine is for compute capability 9.0, not NVIDIA L4 (SM 8.9)"


def test_the_report_is_kept_in_the_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write_bundle(folder, {})
    assert write_report(folder, check_bundle(folder))
    assert json.loads((folder / REPORT_NAME).read_text())["passed"] is True
    verify_files(folder, read_manifest(folder))


def test_a_report_with_infinities_is_still_json(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    report = check_model(tmp_path, {"fp32": make_model(weights, mutant=Mutant(nan=True))})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    rows = json.loads(report.to_json(), parse_constant=refuse)["rows"]
    assert any(row["needed_relative"] is None for row in rows)
    assert ParityReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("before", [(), ("json", "torch")], ids=["not imported", "imported before"])
def test_a_check_imports_no_torch(before: tuple[str, ...], weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Two seconds of every `check`; and a torch that its caller has stays where it is."""
    write_bundle(tmp_path / "b", {("cpu", "fp32"): make_model(weights, precision="fp32")})
    program = f"""
import {", ".join(("sys", *before))}
from engines.checking.parity import check_bundle
from pathlib import Path
known = sys.modules.get("torch")
assert check_bundle(Path(sys.argv[1])).passed
assert sys.modules.get("torch") is known
assert known is not None or "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "b")], check=True, cwd=ROOT)
