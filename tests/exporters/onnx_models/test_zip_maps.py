"""Classifiers as scikit-learn's converter writes them by default: a list of maps becomes the tensor behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exporters.onnx_models.read import read_model, read_source
from specs.errors import GraphError
from tests.exporters.onnx_models.exporting import export

CLASSIFIER = """
<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]>
g (float[N,2] X) => (int64[N] output_label, seq(map(int64, float[])) output_probability) {
  label, scores = ai.onnx.ml.LinearClassifier <classlabels_ints: ints = [0, 1, 2], post_transform: string = "SOFTMAX",
    coefficients: floats = [1.0, 0.5, -1.0, 0.2, 0.1, -0.7], intercepts: floats = [0.1, 0.0, -0.2]> (X)
  output_label = Identity (label)
  output_probability = ai.onnx.ml.ZipMap <classlabels_int64s: ints = [4, 7, 9]> (scores)
}"""


def write(folder: Path, text: str = CLASSIFIER) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


def test_the_columns_are_the_maps(tmp_path: Path, check_in_this_process: None) -> None:
    path = write(tmp_path)
    manifest, report = export(path, tmp_path / "o.bundle")
    assert report.passed
    assert [(t.name, t.dtype) for t in manifest.graphs[0].outputs] == [
        ("output_label", "int64"),
        ("output_probability", "float32"),
    ]
    x = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    _, maps = onnxruntime.InferenceSession(path).run(None, {"X": x})
    _, columns = onnxruntime.InferenceSession(tmp_path / "o.bundle/model/model.onnx").run(None, {"X": x})
    assert np.array_equal(columns, [[one[4], one[7], one[9]] for one in maps])


def test_a_note_names_the_columns(tmp_path: Path) -> None:
    (note,) = read_source(write(tmp_path)).notes
    assert note == "output 'output_probability' is a tensor here, not a list of maps; its columns are 4, 7, 9"
    words = write(
        tmp_path,
        CLASSIFIER.replace(
            "classlabels_int64s: ints = [4, 7, 9]", 'classlabels_strings: strings = ["a", "b", "c"]'
        ).replace("map(int64", "map(string"),
    )
    assert read_source(words).notes[0].endswith("its columns are a, b, c")


def test_other_maps_are_refused_by_name(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]>
    g (map(int64, float[]) x) => (float[1,N] y) { y = ai.onnx.ml.CastMap <cast_to: string = "TO_FLOAT"> (x) }
    """
    with pytest.raises(GraphError, match="input 'x' is made of maps"):
        read_model(write(tmp_path, text))
