"""SetOpset: what it raises and lowers keeps its numbers, what it cannot is named."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.passes import run_pipeline
from exporters.passes.inline_functions import InlineFunctions
from exporters.passes.set_opset import SetOpset
from specs.errors import GraphError
from tests.passes_support import count_ops, differ, parse, random, run


def one_node(opset: int, body: str, *, inputs: str = "float[2,6,4] x", outputs: str = "y") -> str:
    listed = ", ".join(f"float {name}" for name in outputs.split())
    return f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => ({listed}) {{ {body} }}'


REDUCE = "axes = Constant <value = int64[1] {1}> () [n] y = ReduceMean <keepdims: int = 0> (x, axes)"


def test_axes_become_an_attribute() -> None:
    model, feed = parse(one_node(18, REDUCE)), {"x": random(2, 6, 4)}
    result = run_pipeline(model, lowering="tensorrt-8", precision="fp32")
    assert result.model.opset_imports[""] == 17
    assert result.model.graph.node("n").attributes["axes"].as_ints() == (1,)
    assert differ(run(model, feed), run(result.model, feed)) == 0
    assert "SetOpset: 18 -> 17" in result.log


def test_computed_axes_are_refused_by_name() -> None:
    text = one_node(18, "[n] y = ReduceMean (x, axes)", inputs="float[2,6,4] x, int64[1] axes")
    with pytest.raises(GraphError, match="ReduceMean 'n' cannot be lowered: its axes are computed, and older opsets"):
        run_pipeline(parse(text), lowering="tensorrt-8", precision="fp32")


def test_axes_that_are_left_out_leave_no_input_behind() -> None:
    """An older ReduceMean has one input, and an empty second one is one too many."""
    model, feed = parse(one_node(18, "[n] y = ReduceMean <keepdims: int = 0> (x)", outputs="y")), {"x": random(2, 6, 4)}
    model.graph.node("n").resize_inputs(2)
    assert SetOpset(minimum=9, maximum=17)(model).modified
    assert len(model.graph.node("n").inputs) == 1
    assert differ([np.array(feed["x"].mean())], run(model, feed)) < 1e-6


@pytest.mark.parametrize(("axis", "parts"), [(1, [2, 2, 2]), (2, [2, 2, 1])])
def test_split_in_equal_and_unequal_parts(axis: int, parts: list[int]) -> None:
    body = f"[n] y, z, w = Split <axis: int = {axis}, num_outputs: int = 3> (x)"
    model = parse(one_node(18, body, inputs="float[2,6,5] x", outputs="y z w"))
    feed = {"x": random(2, 6, 5)}
    lowered = run(run_pipeline(model, lowering="tensorrt-8", precision="fp32").model, feed)
    assert [part.shape[axis] for part in lowered] == parts
    assert all(np.array_equal(a, b) for a, b in zip(run(model, feed), lowered, strict=True))


def test_group_normalization_changes_its_meaning() -> None:
    text = one_node(
        21,
        "[n] y = GroupNormalization <num_groups: int = 2> (x, s, b)",
        inputs="float[2,6,4] x, float[6] s, float[6] b",
    )
    model, feed = parse(text), {"x": random(2, 6, 4), "s": random(6, seed=1), "b": random(6, seed=2)}
    for lowering in ("tensorrt-8", "tensorrt-10"):
        lowered = run_pipeline(model, lowering=lowering, precision="fp32").model
        assert differ(run(model, feed), run(lowered, feed)) < 1e-5


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (20, "[n] y = Gelu (x)"),
        (20, '[n] y = Gelu <approximate: string = "tanh"> (x)'),
        (18, "[n] y = Mish (x)"),
        (24, "[n] y = Swish (x)"),
        (23, "s = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> () [n] y = RMSNormalization (x, s)"),
    ],
)
def test_newer_operators_become_their_bodies(opset: int, body: str) -> None:
    model, feed = parse(one_node(opset, body)), {"x": random(2, 6, 4)}
    lowered = run_pipeline(model, lowering="tensorrt-8", precision="fp32").model
    assert lowered.opset_imports[""] == 17
    assert not {"Gelu", "Mish", "Swish", "RMSNormalization"} & set(count_ops(lowered))
    assert differ(run(model, feed), run(lowered, feed)) < 1e-5


def test_grid_sample_modes_are_respelled() -> None:
    text = one_node(
        20,
        '[n] y = GridSample <mode: string = "linear"> (x, grid)',
        inputs="float[1,2,4,4] x, float[1,3,3,2] grid",
    )
    model, feed = parse(text), {"x": random(1, 2, 4, 4), "grid": random(1, 3, 3, 2, seed=1, scale=0.4)}
    lowered = run_pipeline(model, lowering="tensorrt-8", precision="fp32").model
    assert lowered.graph.node("n").attributes["mode"].as_string() == "bilinear"
    assert differ(run(model, feed), run(lowered, feed)) < 1e-6


@pytest.mark.parametrize(
    ("opset", "body", "inputs", "reason"),
    [
        (18, "[n] y = Col2Im (x, a, b)", "float[1,5,5] x, int64[2] a, int64[2] b", "opset 17 has no such operator"),
        (18, "[n] y = Resize <antialias: int = 1> (x, , s)", "float[1,1,4,4] x, float[4] s", "attribute 'antialias'"),
        (
            19,
            '[n] y = Pad <mode: string = "wrap"> (x, p)',
            "float[4] x, int64[2] p",
            "mode='wrap' does not exist before",
        ),
    ],
)
def test_what_an_old_opset_cannot_say_is_refused(opset: int, body: str, inputs: str, reason: str) -> None:
    with pytest.raises(GraphError, match=reason) as caught:
        run_pipeline(parse(one_node(opset, body, inputs=inputs)), lowering="tensorrt-8", precision="fp32")
    assert caught.value.where == "n"


@pytest.mark.parametrize("opset", [16, 17])
def test_an_operator_of_a_later_opset_than_the_model_s_is_named(opset: int) -> None:
    """A file may say less than it uses; what the target reads decides."""
    model = parse(one_node(18, "[n] y = Col2Im (x, a, b)", inputs="float[1,5,5] x, int64[2] a, int64[2] b"))
    InlineFunctions()(model)
    model.opset_imports[""] = opset
    with pytest.raises(GraphError, match="Col2Im 'n' cannot be lowered: it needs opset 18, the target reads 17"):
        SetOpset(minimum=9, maximum=17)(model)


def test_a_model_inside_the_range_is_left_alone() -> None:
    model = parse(one_node(13, "[n] y = Softmax (x)"))
    InlineFunctions()(model)
    assert not SetOpset(minimum=9, maximum=17)(model).modified
    assert model.opset_imports[""] == 13


def test_raising_converts_what_changed_its_meaning() -> None:
    """Softmax 11 works on the flattened rest of the axes, Softmax 13 on one axis."""
    model, feed = parse(one_node(11, "[n] y = Softmax <axis: int = 1> (x)")), {"x": random(2, 6, 4)}
    InlineFunctions()(model)
    before = run(model, feed)
    assert SetOpset(minimum=19, maximum=20)(model).modified
    assert model.opset_imports[""] == 19
    assert differ(before, run(model, feed)) < 1e-6
