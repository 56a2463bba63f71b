"""WidenWeights: which Casts it takes away, which weights stay, and that no number changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes.widen_weights import WidenWeights
from tests.passes_support import count_ops, parse, random, run

HEAD = '<ir_version: 10, opset_import: ["": 18]> g (float[2,8] x, int64[3] ids)'
W = {"W": random(8, 8, seed=1).astype(np.float16)}
FEED = {"x": random(2, 8, seed=2), "ids": np.array([5, 0, 7])}


def widen(text: str) -> tuple[ir.Model, bool]:
    """The graph after the pass, which computes what it computed before."""
    model = parse(f"{HEAD} => {text}", W)
    before = run(model, FEED)
    modified = WidenWeights()(model).modified
    for left, right in zip(before, run(model, FEED), strict=True):
        np.testing.assert_array_equal(left, right)
    return model, modified


def list_stored(model: ir.Model) -> list[ir.DataType | None]:
    return [value.dtype for value in model.graph.initializers.values()]


def test_several_casts_of_a_weight_share_one_wide_weight() -> None:
    model, modified = widen("""(float[2,8] y, float[2,8] z) {
        a = Cast <to = 1> (W) y = MatMul (x, a)
        b = Cast <to = 1> (W) p = MatMul (x, b) z = Add (p, x)
    }""")
    assert modified and "Cast" not in count_ops(model)
    assert list_stored(model) == [ir.DataType.FLOAT]


def test_a_weight_that_is_read_as_it_is_too_stays_beside_the_wide_one() -> None:
    model, modified = widen(
        """(float[2,8] y, float16[8,8] n) { a = Cast <to = 1> (W) y = MatMul (x, a) n = Neg (W) }"""
    )
    assert modified and "Cast" not in count_ops(model)
    assert set(list_stored(model)) == {ir.DataType.FLOAT, ir.DataType.FLOAT16}


def test_a_weight_that_the_graph_answers_with_stays() -> None:
    model, modified = widen("(float[2,8] y, float16[8,8] W) { a = Cast <to = 1> (W) y = MatMul (x, a) }")
    assert modified
    assert set(list_stored(model)) == {ir.DataType.FLOAT, ir.DataType.FLOAT16}


def test_rows_that_are_looked_up_are_looked_up_wide() -> None:
    model, modified = widen("(float[3,8] y) { rows = Gather (W, ids) a = Cast <to = 1> (rows) y = Relu (a) }")
    assert modified and count_ops(model) == {"Gather": 1, "Relu": 1}
    assert list_stored(model) == [ir.DataType.FLOAT]


@pytest.mark.parametrize(
    "text",
    [
        "(float[8,8] y) { y = Cast <to = 1> (W) }",
        "(double[8,8] y) { a = Cast <to = 11> (W) y = Neg (a) }",
        "(float[3,8] y, float16[3,8] n) { rows = Gather (W, ids) a = Cast <to = 1> (rows) y = Neg (a) n = Neg (rows) }",
        "(float[3,8] y, float16[3,8] rows) { rows = Gather (W, ids) a = Cast <to = 1> (rows) y = Neg (a) }",
        "(float[8,8] y) { h = Neg (W) a = Cast <to = 1> (h) y = Neg (a) }",
        "(float[3] y) { a = Cast <to = 1> (ids) y = Neg (a) }",
    ],
    ids=["an output", "to float64", "rows with two readers", "rows that are an output", "computed", "integers"],
)
def test_any_other_cast_stays(text: str) -> None:
    model, modified = widen(text)
    assert not modified and count_ops(model)["Cast"] == 1
    assert all(dtype == ir.DataType.FLOAT16 for dtype in list_stored(model))
