"""SelectMaskedScores: masks by row become a Where, everything else keeps its Add, and the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes.infer_types import InferTypes
from exporters.passes.select_masked_scores import SelectMaskedScores
from exporters.passes.shared.graph import notes_of
from tests.passes_support import count_ops, differ, parse, random, run

# three rows of different lengths; T is 1 where it matters
GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,4,{T},16] q, float[B,4,16,S] k, float[B,4,S,16] v, bool[{seen}] seen{extra}) => (float[B,4,{T},16] y) {{
    zero = Constant <value = float {{{zero}}}> ()
    low = Constant <value = float {{{low}}}> ()
    scores = MatMul (q, k)
    {mask}
    {add}
    weights = Softmax <axis = {axis}> (masked)
    y = MatMul (weights, v)
}}
"""
WHERE = "bias = Where (seen, zero, low)"
ADD = "masked = Add (scores, bias)"


def make(T: int | str = 1, mask: str = WHERE, add: str = ADD, **given: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    words = {"seen": "B,1,1,S", "extra": "", "zero": "0.0", "low": "-3.4028235e38", "axis": "-1", **given}
    model = parse(GRAPH.format(T=T, mask=mask, add=add, **words))
    InferTypes()(model)
    seen = np.arange(9)[None, None, None, :] < np.array([2, 5, 9])[:, None, None, None]
    queries = T if isinstance(T, int) else 4
    feed = {
        "q": random(3, 4, queries, 16),
        "k": random(3, 4, 16, 9, seed=1),
        "v": random(3, 4, 9, 16, seed=2),
        "seen": seen,
    }
    return model, feed


def count_selected(model: ir.Model) -> int:
    """How many Softmaxes read a Where."""
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    return sum(node.inputs[0].producer().op_type == "Where" for node in softmaxes)  # type: ignore[union-attr]


@pytest.mark.parametrize("T", [1, "T"])
@pytest.mark.parametrize(
    ("mask", "add"),
    [
        (WHERE, ADD),
        (WHERE, "masked = Add (bias, scores)"),
        ("unseen = Not (seen)\n bias = Where (unseen, low, zero)", ADD),
        (WHERE, "capped = Tanh (scores)\n masked = Add (capped, bias)"),
    ],
)
def test_a_mask_by_row_becomes_a_where(T: int | str, mask: str, add: str) -> None:
    model, feed = make(T, mask, add)
    before = run(model, feed)
    assert SelectMaskedScores()(model).modified
    assert count_selected(model) == 1 and "Add" not in count_ops(model)
    assert differ(before, run(model, feed)) < 1e-6
    assert notes_of(model).log == ["SelectMaskedScores: 1 masks became a Where"]


def test_a_mask_that_is_expanded_on_its_way() -> None:
    mask = """flat = Where (seen, zero, low)
    axes = Constant <value = int64[2] {1, 2}> ()
    tall = Unsqueeze (flat, axes)
    sizes = Constant <value = int64[4] {1, 1, 1, 1}> ()
    bias = Expand (tall, sizes)"""
    model, feed = make(1, mask, seen="B,S")
    feed["seen"] = feed["seen"][:, 0, 0]
    before = run(model, feed)
    assert SelectMaskedScores()(model).modified and count_selected(model) == 1
    assert differ(before, run(model, feed)) < 1e-6


def test_a_shared_mask_keeps_its_add_and_the_other_does_not() -> None:
    model, feed = make(
        1, WHERE, "some = Add (scores, shared)\n masked = Add (some, bias)", extra=", float[1,1,1,S] shared"
    )
    feed["shared"] = random(1, 1, 1, 9, seed=5)
    before = run(model, feed)
    assert SelectMaskedScores()(model).modified
    assert count_selected(model) == 1 and count_ops(model)["Add"] == 1
    assert differ(before, run(model, feed)) < 1e-6


def test_a_row_that_sees_nothing_is_uniform() -> None:
    model, feed = make()
    feed["seen"][1] = False
    SelectMaskedScores()(model)
    (out,) = run(model, feed)
    assert np.abs(out[1, :, 0] - feed["v"][1].mean(axis=1)).max() < 1e-6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"zero": "0.5"}, True),  # kept scores would move: no mask
        ({"low": "-100.0"}, True),  # a real bias
        ({"mask": "", "extra": ", float[B,1,1,S] bias"}, True),  # nobody knows what an input holds
        ({"mask": "", "extra": ", float[B,1,1,S] bias", "T": 4}, False),  # right on 8.6 as it is
        ({"T": 4}, False),  # so is this
        ({"seen": "1,1,1,S"}, False),  # all rows share it
        ({"axis": "2", "T": 4}, False),  # no attention
    ],
)
def test_near_misses_keep_their_add(words: dict[str, str], said: bool) -> None:
    model, _ = make(**words)  # type: ignore[arg-type]
    assert not SelectMaskedScores()(model).modified and count_ops(model)["Add"] == 1
    assert [
        "its bias differs by row and is no Where of 0 and a lowest value; 8.6 takes row 0's for every row" in line
        for line in notes_of(model).log
    ] == [True] * said


def test_a_mask_whose_branches_are_swapped_is_found_out() -> None:
    """The mutant: what must not be seen is seen."""
    model, feed = make()
    before = run(model, feed)
    SelectMaskedScores()(model)
    (where,) = [node for node in model.graph if node.op_type == "Where" and node.outputs[0].uses()]
    first, second = where.inputs[1:]
    where.replace_input_with(1, second)
    where.replace_input_with(2, first)
    assert differ(before, run(model, feed)) > 0.1
