"""Ranges: measured where asked, of models with external data too, and every bad sample is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporters.calibration.measure import Method, measure_ranges
from exporters.passes import Range
from specs.errors import CalibrationError
from tests.passes_support import parse, random

TEXT = '<ir_version: 10, opset_import: ["": 18]> g (float[B,8] x) => (float[B,8] y) { h = MatMul (x, W) y = Relu (h) }'


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    model = parse(TEXT, {"W": random(8, 8, seed=1)})
    ir.save(model, tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    assert (tmp_path / "model.data").stat().st_size >= 256
    return tmp_path / "model.onnx"


def test_extremes_over_all_samples(model_path: Path) -> None:
    samples = [{"x": random(4, 8, seed=seed)} for seed in range(3)]
    seen: list[str] = []
    ranges = measure_ranges(model_path, ["x", "h"], iter(samples), progress=lambda text, _: seen.append(text))
    inputs = np.concatenate([sample["x"] for sample in samples])
    products = inputs @ random(8, 8, seed=1)
    assert ranges["x"] == Range(float(inputs.min()), float(inputs.max()))
    assert ranges["h"].low == pytest.approx(float(products.min()), rel=1e-5)
    assert ranges["h"].high == pytest.approx(float(products.max()), rel=1e-5)
    assert seen == ["calibrating: 1 samples", "calibrating: 2 samples", "calibrating: 3 samples"]
    assert sorted(path.name for path in model_path.parent.iterdir()) == ["model.data", "model.onnx"]


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_an_outlier_is_given_up(model_path: Path, method: Method) -> None:
    x = random(4096, 8)
    x[0, 0] = 100.0
    ranges = measure_ranges(model_path, ["x"], [{"x": x}], method)
    assert 2.5 < ranges["x"].high < 20
    assert -20 < ranges["x"].low < -2.5
    assert measure_ranges(model_path, ["x"], [{"x": x}], "max")["x"].high == 100


def test_methods_are_different_ones(model_path: Path) -> None:
    x = random(4096, 8)
    x[:4] *= 20
    found = {m: measure_ranges(model_path, ["x"], [{"x": x}], m)["x"].high for m in ("max", "percentile", "entropy")}
    assert found["entropy"] < found["percentile"] < found["max"]


def test_nothing_to_measure(model_path: Path) -> None:
    assert measure_ranges(model_path, [], []) == {}


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        ([], "there are no calibration samples"),
        ([{"x": random(2, 8), "more": random(2)}], "calibration sample 0 does not match the graph's inputs"),
        ([{"image": random(2, 8)}], "calibration sample 0 does not match the graph's inputs"),
        ([{"x": random(2, 8)}, {"x": random(2, 7)}], "the graph does not take calibration sample 1"),
        ([{"x": random(2, 8).astype(np.float64)}], "the graph does not take calibration sample 0"),
        ([{"x": np.full((2, 8), np.nan, np.float32)}], "is not finite on calibration sample 0"),
        ([{"x": np.full((2, 8), 3e38, np.float32)}], "'h' is not finite on calibration sample 0"),
    ],
)
def test_bad_samples(model_path: Path, samples: list[dict[str, np.ndarray]], problem: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        measure_ranges(model_path, ["x", "h"], samples)
    assert problem in caught.value.problem


def test_an_unknown_tensor(model_path: Path) -> None:
    with pytest.raises(CalibrationError, match="the graph has no tensor 'nothing'"):
        measure_ranges(model_path, ["nothing"], [{"x": random(2, 8)}])
