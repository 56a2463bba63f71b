"""The verdict on int8 of a user's file over samples that calibrated nothing: right in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.checking.compare import StageName
from engines.checking.held_out import judge_held_out
from engines.checking.reference import Rounding, read_held_out
from exporters.onnx_models.held_out import split_samples
from specs.bundle import Graph, IoTensor
from specs.errors import BundleError, ParityError
from specs.report import ParityRow
from tests.exporters.onnx_models.judged_models import (
    Export,
    change_weight,
    drop_bias,
    judge,
    make_inputs,
    write_model,
)

# What is held out.


def test_every_fourth_sample_is_held_out_and_calibrates_nothing() -> None:
    feeds = [{"x": np.full(1, index)} for index in range(40)]
    kept, held = split_samples(feeds)
    assert [int(feed["x"][0]) for feed in held] == list(range(0, 40, 4))
    assert {int(feed["x"][0]) for feed in (*kept, *held)} == set(range(40))
    assert len(kept) == 30
    assert len(split_samples([{"x": np.zeros(1)}] * 500)[1]) == 16
    assert split_samples(feeds[:7]) == (feeds[:7], [])


def test_the_bundle_keeps_them_with_what_rounding_makes(tmp_path: Path, export: Export) -> None:
    manifest, report = export(write_model(tmp_path), "cpu", "rtx-4090", inputs=make_inputs())
    (graph,) = manifest.graphs
    held = read_held_out(tmp_path / "o.bundle", graph, "cpu", "int8")
    assert len(held.feeds) == 10
    assert np.array_equal(held.feeds[3]["x"], make_inputs()[12:13])
    rows = {row.stage: row for row in report.rows}
    for target in ("cpu", "rtx-4090"):
        row = rows[f"model/model.{target}-int8.onnx"]
        assert row.samples == 11
        rounding = read_held_out(tmp_path / "o.bundle", graph, target, "int8").rounding["y"].largest
        assert rounding / 3 < row.difference.max_abs < 2 * rounding, "noise of the same steps is as far"
    assert rows["model/model.onnx"].samples == 1


STRUCT = np.dtype([("a", "f4")])
FORGED: dict[str, Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]] = {
    "an input of text": lambda a: a | {"1:input:x": a["1:input:x"].astype(str)},
    "an input of records": lambda a: a | {"1:input:x": np.zeros(a["1:input:x"].shape, STRUCT)},
    "an input of another rank": lambda a: a | {"1:input:x": a["1:input:x"].ravel()},
    "an answer of text": lambda a: a | {"0:output:y": a["0:output:y"].astype(str)},
    "an answer of records": lambda a: a | {"0:output:y": np.zeros(a["0:output:y"].shape, STRUCT)},
    "a missing answer": lambda a: {key: value for key, value in a.items() if key != "0:output:y"},
    "a missing sample": lambda a: {key: value for key, value in a.items() if not key.startswith("0:")},
    "nothing": lambda a: {},
    "rounding of records": lambda a: a | {"rounding:cpu-int8:y": np.zeros(2, STRUCT)},
    "rounding of text": lambda a: a | {"rounding:cpu-int8:y": np.array(["a", "b"])},
    "rounding without end": lambda a: a | {"rounding:cpu-int8:y": np.full(2, np.inf)},
    "rounding below 0": lambda a: a | {"rounding:cpu-int8:y": np.full(2, -1.0)},
    "rounding of one number": lambda a: a | {"rounding:cpu-int8:y": np.zeros(1)},
}


def test_forged_samples_are_refused(tmp_path: Path, export: Export) -> None:
    """Their digests would be right, and they do not fit the graph."""
    manifest, _ = export(write_model(tmp_path), "cpu", inputs=make_inputs())
    (graph,) = manifest.graphs
    path = tmp_path / "o.bundle" / str(graph.held_out)
    arrays = dict(np.load(path))
    for case, forge in FORGED.items():
        np.savez(path, **forge(arrays))  # type: ignore[arg-type]  # as in `write_held_out`
        with pytest.raises(BundleError, match="the held-out data of graph 'model' does not fit it"):
            read_held_out(tmp_path / "o.bundle", graph, "cpu", "int8")
            pytest.fail(case)
    np.savez(path, **arrays)
    assert read_held_out(tmp_path / "o.bundle", graph, "cpu", "int8").feeds


def test_without_samples_others_are_made_up(tmp_path: Path, export: Export) -> None:
    _, report = export(write_model(tmp_path), "cpu")
    assert report.rows[-1].samples == 9


def test_held_out_data_that_lacks_an_output_is_refused(tmp_path: Path, export: Export) -> None:
    manifest, _ = export(write_model(tmp_path), "cpu", inputs=make_inputs())
    path = tmp_path / "o.bundle/model/model.held_out.npz"
    with np.load(path) as arrays:
        rest = {key: arrays[key] for key in arrays if key != "2:output:y"}
    np.savez(path, **rest)
    with pytest.raises(BundleError, match="does not fit it(.|\n)*2:output:y(.|\n)*nothing"):
        read_held_out(tmp_path / "o.bundle", manifest.graphs[0], "cpu", "int8")


# A right graph passes.


def test_probabilities_of_many_classes_pass_though_one_moves_by_more_than_their_rms(
    tmp_path: Path, export: Export
) -> None:
    """Most of 200 are 0, so that 0.3 of the rms is 0.02: a limit on the largest error alone would refuse them all."""
    manifest, report = export(write_model(tmp_path, "y = Softmax(c)"), "rtx-4090", inputs=make_inputs())
    row = report.rows[-1]
    assert row.passed
    assert row.difference.max_abs > 0.3 * row.difference.reference_rms
    assert judge(tmp_path / "o.bundle", manifest, lambda proto: None, "rtx-4090")[0].passed


# A wrong one fails: one mutant a line.


def scale(proto: onnx.ModelProto, op_type: str, factor: float) -> None:
    """The scale of the first `op_type` that has one of a tensor, times `factor`."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == op_type and not stored[node.input[1]].dims and node.input[0] not in stored:
            array = numpy_helper.to_array(stored[node.input[1]])
            new = numpy_helper.from_array(np.asarray(array * factor, array.dtype), "mutated")
            proto.graph.initializer.append(new)
            node.input[1] = "mutated"
            return
    raise AssertionError(f"no {op_type}")


MUTANTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a scale off by sqrt 2 where it is read": lambda proto: scale(proto, "DequantizeLinear", 2**0.5),
    "a scale off by sqrt 2 where it is written": lambda proto: scale(proto, "QuantizeLinear", 2**-0.5),
    "channels that are swapped": lambda proto: change_weight(proto, lambda array: array[:, ::-1]),
    "a row of the weight that is missing": lambda proto: change_weight(
        proto, lambda array: np.where(np.arange(len(array))[:, None] % 8 == 0, 0, array).astype(array.dtype)
    ),
    "a weight with another zero point": lambda proto: change_weight(
        proto, lambda array: (array.astype(np.int16) + 16).clip(-127, 127).astype(array.dtype)
    ),
    "a bias that is dropped": drop_bias,
}


@pytest.mark.parametrize("tail", ["y = Identity(c)", "y = Softmax(c)", "y = Sigmoid(c)"])
def test_mutants_fail(tail: str, tmp_path: Path, export: Export) -> None:
    manifest, _ = export(write_model(tmp_path, tail), "rtx-4090", inputs=make_inputs())
    assert judge(tmp_path / "o.bundle", manifest, lambda proto: None, "rtx-4090")[0].passed
    survivors = [
        name for name, mutate in MUTANTS.items() if judge(tmp_path / "o.bundle", manifest, mutate, "rtx-4090")[0].passed
    ]
    assert not survivors


def test_a_sample_that_is_lost_fails_though_the_golden_one_is_right(tmp_path: Path, export: Export) -> None:
    """What calibrates is quiet; one held-out sample is four times as loud and saturates."""
    inputs = np.concatenate([make_inputs(seed) for seed in range(3)])
    inputs[16] *= 4
    with pytest.raises(ParityError) as caught:
        export(write_model(tmp_path), "a100@trt8.6", inputs=inputs)
    assert "sample 4 of 16 is " in str(caught.value)
    assert "along its last axis the largest value stays in its place in " in str(caught.value)


# The judge alone.


def rows_of(
    values: list[list[float]],
    wanted: list[list[float]],
    dtype: str = "float32",
    rounding: float | None = None,
    mean: float = 1.0,
    **fields: object,
) -> ParityRow:

    tensor = IoTensor(name="y", dtype=dtype, shape=("N",))
    graph = Graph(name="g", component="g", file="g", golden="g", inputs=(), outputs=(tensor,))
    graph = replace(graph, **fields)  # type: ignore[arg-type]
    where = StageName(graph="g", stage="s", backend="onnxruntime", precision="int8")
    got, reference = ([{"y": np.array(one, dtype)} for one in arrays] for arrays in (values, wanted))
    return judge_held_out(where, graph, got, reference, {} if rounding is None else {"y": Rounding(rounding, mean)})[0]


def test_the_largest_error_must_be_small_or_rounding() -> None:
    wanted = [[1.0] * 100, [-1.0] * 100]
    got = [[1.0] * 99 + [1.5], [-1.0] * 100]
    assert not rows_of(got, wanted).passed
    assert not rows_of(got, wanted, rounding=0.1).passed
    assert rows_of(got, wanted, rounding=0.2).passed
    assert "rounding to int8 alone makes 0.1" in rows_of(got, wanted, rounding=0.1).reason


def test_an_error_that_is_small_and_still_not_rounding_fails() -> None:
    """A tenth of the rms everywhere, where rounding makes a hundredth."""
    wanted = [[1.0, -1.0, 2.0, -2.0]] * 3
    got = [[1.1, -0.9, 2.1, -1.9]] * 3
    assert rows_of(got, wanted).passed, "nothing is known of rounding"
    assert "the graph is wrong" in rows_of(got, wanted, rounding=0.1, mean=0.01).reason
    assert rows_of(got, wanted, rounding=0.1, mean=0.05).passed


def test_no_floor_excuses_a_sample_that_is_lost() -> None:
    wanted, got = [[1.0, 2.0], [1.0, -2.0]], [[1.0, 2.0], [1.0, -1.0]]
    assert not rows_of(got, wanted, rounding=1e9).passed


def test_nan_and_other_shapes_fail() -> None:
    assert not rows_of([[float("nan")]], [[1.0]], rounding=1e9).passed
    assert "shape" in rows_of([[1.0, 1.0]], [[1.0]]).reason
    assert not rows_of([[float("nan")]], [[1e-6]], probabilities=("y",)).passed


def test_outputs_of_no_elements_and_of_zeros_pass() -> None:
    assert rows_of([[], []], [[], []]).passed
    assert rows_of([[0.0], [0.0]], [[0.0], [0.0]], rounding=0.0, mean=0.0).passed
    assert not rows_of([[0.0], [1.0]], [[0.0], [0.0]]).passed


def test_one_integer_in_two_hundred_may_differ() -> None:
    wanted = [[float(index) for index in range(100)]] * 4
    got = [list(wanted[0]) for _ in range(4)]
    got[1][5] = got[2][6] = 0
    assert rows_of(got, wanted, "int64").passed
    got[3][7] = 0
    assert not rows_of(got, wanted, "int64").passed
    assert not rows_of([[1, 2]], [[1, 3]], "int64").passed


def test_a_no_is_judged_by_its_logit() -> None:
    wanted = [[1e-6], [2e-7], [3e-6]]
    assert rows_of([[1e-3], [0.0], [1e-5]], wanted, probabilities=("y",)).passed
    assert not rows_of([[1e-3], [0.6], [1e-5]], wanted, probabilities=("y",)).passed
    assert "2 of 3 answers stay on their side of 0.5" in rows_of([[0], [0.6], [0]], wanted, probabilities=("y",)).reason
