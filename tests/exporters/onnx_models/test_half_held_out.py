"""The verdict on half precision of a user's file, by what rounding to it explains: right in both directions."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from engines.checking.reference import read_held_out
from exporters.onnx_models.half_noise import add_half_noise
from exporters.onnx_models.held_out import split_samples
from exporters.onnx_models.run_apart import running_apart
from tests.exporters.onnx_models.judged_models import (
    Change,
    Export,
    change_weight,
    drop_bias,
    judge,
    make_inputs,
    write_model,
)

#: Sharp as a reader of 6625 characters: its answers are 0 and 1 but where it hesitates.
SHARP = "k = Constant <value = float {6.0}> () s = Mul(c, k) y = Softmax(s)"


# What is held out, and what rounding makes of it.


def test_samples_that_calibrate_nothing_are_all_held_out() -> None:
    feeds = [{"x": np.full(1, index)} for index in range(40)]
    assert split_samples(feeds[:3], calibrating=False) == ([], feeds[:3])
    assert [int(feed["x"][0]) for feed in split_samples(feeds, calibrating=False)[1]] == list(range(0, 40, 3))


@pytest.mark.parametrize("target", ["cpu", "rtx-4090", "h200@trt8.6"])
def test_noise_is_as_far_as_the_half_graph(target: str, tmp_path: Path, export: Export) -> None:
    manifest, report = export(write_model(tmp_path), target, inputs=make_inputs(), precision="fp16")
    (graph,) = manifest.graphs
    row = report.rows[-1]
    rounding = read_held_out(tmp_path / "o.bundle", graph, target, "fp16").rounding["y"]
    assert row.samples == 15  # the golden one and 14 of 40
    assert rounding.largest / 5 < row.difference.max_abs < 2 * rounding.largest
    assert row.needed_relative < 1e-3


def test_what_is_a_half_already_is_not_moved(tmp_path: Path) -> None:
    """Integers up to 2048, masks and what a Transpose moves are rounded to themselves; the rest is moved a little."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[4, N] y, float[N, 4] z) {'
        " t = Transpose <perm = [1, 0]> (x) y = Mul(t, mask) z = Mul(x, third) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 1, 1], np.float32)[:, None], "mask"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 3, np.float32), "third"))
    noisy = add_half_noise(ir.from_proto(model), 1, lowering="tensorrt-11", precision="fp16")
    assert noisy is not None
    ir.save(noisy, tmp_path / "noisy.onnx")
    x = np.arange(2049, dtype=np.float32)[-4:][None]
    with running_apart(tmp_path / "noisy.onnx", tmp_path, data_folder=tmp_path) as session:
        answers = [session.run({"x": x}) for _ in range(8)]
    for answer in answers:
        assert np.array_equal(answer["y"], x.T * [[1], [0], [1], [1]])
        assert 0 < np.abs(answer["z"] / (x / 3) - 1).max() < 2e-3
    assert len({answer["z"].tobytes() for answer in answers}) > 1, "drawn anew in every run"


# A right graph passes.


@pytest.mark.parametrize("target", ["cpu", "rtx-4090", "h200@trt8.6"])
def test_a_reader_that_hesitates_once_passes(target: str, tmp_path: Path, export: Export) -> None:
    """One of 200 probabilities moves by more than 3 % of their rms: the golden sample alone refused it."""
    manifest, report = export(write_model(tmp_path, SHARP), target, inputs=make_inputs(), precision="fp16")
    row = report.rows[-1]
    assert row.passed
    assert row.difference.max_abs > 0.03 * row.difference.reference_rms
    assert judge(tmp_path / "o.bundle", manifest, lambda proto: None, target, "fp16")[0].passed


# A wrong one fails: one mutant a line.


def store_in_float8(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.float8_e4m3fn).astype(array.dtype)


def swap_neighbours(array: np.ndarray) -> np.ndarray:
    return array[:, np.arange(array.shape[1]) ^ 1]


MUTANTS: dict[str, Change] = {
    "channels that are swapped with their neighbours": lambda proto: change_weight(proto, swap_neighbours),
    "a weight that is off by 1 %": lambda proto: change_weight(proto, lambda array: (array * 1.01).astype(array.dtype)),
    "a weight that was rounded to float8": lambda proto: change_weight(proto, store_in_float8),
    "a row of the weight that is missing": lambda proto: change_weight(
        proto, lambda array: np.where(np.arange(len(array))[:, None] == 7, 0, array).astype(array.dtype)
    ),
    "a bias that is dropped": drop_bias,
}
TAILS = ("y = Identity(c)", "y = Softmax(c)", SHARP, "y = Sigmoid(c)")
#: Of 3000 sharp answers one hesitates, and rounding moves it as far (0.0069) as 1 % does (0.0073).
INVISIBLE = {SHARP: ["a weight that is off by 1 %"]}


@pytest.mark.parametrize("target", ["cpu", "rtx-4090"])
@pytest.mark.parametrize("tail", TAILS)
def test_mutants_fail(tail: str, target: str, tmp_path: Path, export: Export) -> None:
    manifest, _ = export(write_model(tmp_path, tail), target, inputs=make_inputs(), precision="fp16")
    folder = tmp_path / "o.bundle"
    assert judge(folder, manifest, lambda proto: None, target, "fp16")[0].passed
    survivors = [name for name, change in MUTANTS.items() if judge(folder, manifest, change, target, "fp16")[0].passed]
    assert survivors == INVISIBLE.get(tail, [])


def test_what_the_golden_sample_alone_let_pass_fails(tmp_path: Path, export: Export) -> None:
    """A weight off by 0.3 %: less than what eight floors of float32 allowed one sample."""
    manifest, _ = export(write_model(tmp_path), "cpu", inputs=make_inputs(), precision="fp16")

    def change(proto: onnx.ModelProto) -> None:
        change_weight(proto, lambda array: (array * 1.003).astype(array.dtype))

    (row,) = judge(tmp_path / "o.bundle", manifest, change, "cpu", "fp16")
    assert row.difference.max_abs < 0.016 * row.difference.reference_rms
    assert not row.passed and "the graph is wrong" in row.reason


def test_without_a_noise_floor_the_golden_sample_judges(tmp_path: Path, export: Export) -> None:
    """Of bundles whose file has no figure for this target and precision."""
    manifest, _ = export(write_model(tmp_path), "cpu", inputs=make_inputs(), precision="fp16")
    folder, (graph,) = tmp_path / "o.bundle", manifest.graphs
    assert len(read_held_out(folder, graph, "cpu", "fp16").feeds) == 14
    for target, precision in (("cpu", "fp32"), ("cpu", "bf16"), ("rtx-4090", "fp16")):
        assert not read_held_out(folder, graph, target, precision).feeds
    assert len(read_held_out(folder, graph, "cpu", "int8").feeds) == 14
