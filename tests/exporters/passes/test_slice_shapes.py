"""SliceShapes: the sizes stay what they were, and no Shape keeps a start or an end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from exporters.passes.slice_shapes import SliceShapes
from tests.passes_support import count_ops, parse, run


def make(attributes: str) -> ir.Model:
    return parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[a, b, 3, c] x) => (int64[n] y) {{ y = Shape{attributes} (x) }}"""
    )


@pytest.mark.parametrize(
    "attributes",
    ["<start = 1>", "<end = 2>", "<start = 1, end = 3>", "<start = -2>", "<end = -1>", "<start = 2, end = 2>",
     "<start = 0, end = 9>", "<start = -9, end = 1>"],
)  # fmt: skip
def test_the_sizes_stay(attributes: str) -> None:
    feed = {"x": np.zeros((5, 2, 3, 7), np.float32)}
    model = make(attributes)
    before = run(model, feed)
    assert SliceShapes()(model).modified
    assert count_ops(model) == {"Shape": 1, "Slice": 1}
    assert [after.tolist() for after in run(model, feed)] == [value.tolist() for value in before]
    assert model.graph.outputs[0].name == "y"


def test_a_whole_shape_is_left_alone() -> None:
    model = make("")
    assert not SliceShapes()(model).modified and count_ops(model) == {"Shape": 1}


@pytest.mark.parametrize(("lowering", "sliced"), [("tensorrt-8", True), ("tensorrt-10", False)])
def test_only_tensorrt_8_needs_it(lowering: str, sliced: bool) -> None:
    model = run_pipeline(make("<start = 1, end = 3>"), lowering=lowering, precision="fp32").model
    assert ("Slice" in count_ops(model)) == sliced
