"""FuseStep: one layer of a decode step becomes five nodes of two plugins, and a wrong node is seen by its numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from tests.exporters.passes.step_layer import FUSED, LARGEST, LIMITS, fuse, make, run_fused, said
from tests.passes_support import count_ops, differ, random, run


def attributes_of(node: ir.Node) -> dict[str, object]:
    return {name: value.value for name, value in node.attributes.items() if not name.startswith("plugin_")}


@pytest.mark.parametrize("precision", LIMITS)
def test_a_layer_is_five_nodes_and_keeps_its_numbers(precision: str) -> None:
    model, feed = make()
    result = fuse(model, precision)
    casts = {"Cast": 2} if precision == "fp16" else {}  # x and y: the interface is float32
    assert count_ops(result.model) == {**FUSED, **casts}
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS[precision]
    (line,) = said(result)
    assert line == (
        "1 nodes of attention became plugins, 1 with their rotation; 6 products became 4, 2 with their norm,"
        " 2 with their residual"
    )
    assert not result.model.functions and result.model.opset_imports["metagen.plugin"] == 1


#: How a head may be written, z behind the layer: what stands for `head`, and the shapes of its matrix and result.
HEADS = {
    "Gemm, transposed": ("z = Gemm <transB = 1> (f, head)", (40, 32)),
    "Gemm": ("z = Gemm <alpha = 1.0> (f, head)", (32, 40)),
    "Gemm with a bias": ("z = Gemm <transB = 1> (f, head, head_bias)", (40, 32)),
    "MatMul, transposed": ("t = Transpose <perm = [1, 0]> (head)\n z = MatMul (f, t)", (40, 32)),
    "MatMul, transposed without saying how": ("t = Transpose (head)\n z = MatMul (f, t)", (40, 32)),
}
NORM = """y = Add (down, h)
    r = Squeeze (y, middle)
    r2 = Pow (r, two)
    r_mean = ReduceMean (r2, last)
    r_sum = Add (r_mean, epsilon)
    r_root = Sqrt (r_sum)
    r_inverse = Reciprocal (r_root)
    r_scaled = Mul (r, r_inverse)
    f = Mul (r_scaled, n_weight)
    """


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_with_its_norm_is_one_node(head: str, precision: str) -> None:
    text, shape = HEADS[head]
    weights = {"head": random(*shape, seed=50, scale=0.2), "head_bias": random(40, seed=51), "middle": np.array([1])}
    model, feed = make(
        ("=> (float[B,1,32] y,", "=> (float[B,40] z, float[B,1,32] y,"),
        ("y = Add (down, h)", NORM + text),
        weights=weights,
    )
    result = fuse(model, precision)
    ops = count_ops(result.model)
    del ops["Cast"]
    assert ops == {**FUSED, "MetagenStepLinear": 5, "Squeeze": 1}
    last = [node for node in result.model.graph if node.op_type == "MetagenStepLinear"][-1]
    said_of = {name: attributes_of(last)[name] for name in ("weights", "transposed", "norm", "bias", "half")}
    assert said_of == {
        "weights": 1, "transposed": int("transposed" in head or "bias" in head), "norm": 1,
        "bias": int("bias" in head), "half": int(precision == "fp16"),
    }  # fmt: skip
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS[precision]


@pytest.mark.parametrize("precision", LIMITS)
def test_what_the_nodes_say(precision: str) -> None:
    model, _ = make()
    fused = fuse(model, precision).model
    first, attention, out, gate, down = (node for node in fused.graph if node.domain == "metagen.plugin")
    half = int(precision == "fp16")
    linear = {
        "weights": 1,
        "transposed": 0,
        "norm": 0,
        "epsilon": 0.0,
        "bias": 0,
        "residual": 0,
        "gate": "none",
        "half": half,
    }
    epsilon = float(np.float32(0.1))
    assert attributes_of(first) == {**linear, "weights": 3, "norm": 1, "epsilon": epsilon, "bias": 1}
    assert attributes_of(out) == attributes_of(down) == {**linear, "residual": 1}
    assert attributes_of(gate) == {**linear, "weights": 2, "norm": 1, "epsilon": epsilon, "gate": "silu"}
    scale = float(np.float32(0.3))
    assert attributes_of(attention) == {
        "scale": scale, "groups": 2, "window": 4, "softcap": 0.0, "rotary": 1, "half": half,
    }  # fmt: skip
    for node in (first, attention, out, gate, down):
        assert node.attributes["plugin_namespace"].value == "metagen.plugin"
        assert node.attributes["plugin_version"].value == "1"
    kind = "FLOAT16" if half else "FLOAT"
    assert {v.dtype.name for node in (first, out, gate, down) for v in (*node.inputs, *node.outputs)} == {kind}  # type: ignore[union-attr]
    assert [v.dtype.name for v in (*attention.inputs, *attention.outputs)] == [  # type: ignore[union-attr]
        *[kind] * 3, "FLOAT", "FLOAT", "INT64", "FLOAT", "FLOAT", kind, "FLOAT", "FLOAT",
    ]  # fmt: skip
    names = [value.name.removesuffix("/float16") for value in first.inputs[1:] if value is not None and value.name]
    assert names == ["q_weight", "k_weight", "v_weight", "n_weight", "q_bias", "k_bias", "v_bias"]
    assert list(attention.inputs[:3]) == list(first.outputs) and out.inputs[0] is attention.outputs[0]


def test_the_other_operands_of_the_norm_the_rotation_and_the_sums() -> None:
    model, feed = make(
        ("Mul (x, x_inverse)", "Mul (x_inverse, x)"),
        ("x_inverse = Reciprocal (x_root)", "one = Constant <value_float = 1.0> ()\n x_inverse = Div (unit, x_root)"),
        ("Mul (qa, cos)", "Mul (cos, qa)"),
        ("Add (q4, q5)", "Add (q5, q4)"),
        ("Add (x, o)", "Add (o, x)"),
        ("Add (q_product, q_bias)", "Add (q_bias, q_product)"),
        ("Add (down, h)", "Add (h, down)"),
        weights={"unit": np.ones((), np.float32)},
    )  # fmt: skip
    result = fuse(model)
    assert count_ops(result.model) == FUSED
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


def test_a_token_behind_the_cache_is_not_written() -> None:
    model, feed = make()
    fused = fuse(model).model
    feed["start"] = np.array([3, 12, 40])  # the cache has 12 slots
    _, keys, values = run_fused(fused, feed)
    assert np.array_equal(keys[1:], feed["pk"][1:]) and np.array_equal(values[1:], feed["pv"][1:])
    assert not np.array_equal(keys[0, :, 3], feed["pk"][0, :, 3])
    ordinary = run_pipeline(model, lowering="tensorrt-8", precision="fp32").model
    assert differ(run(ordinary, feed), run_fused(fused, feed)) < LIMITS["fp32"]


def _edit(op_type: str, place: int, **changes: object) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        node = [node for node in model.graph if node.op_type == op_type][place]
        for name, value in changes.items():
            node.attributes[name] = ir.Attr(name, node.attributes[name].type, value)

    return edit


def _swap(op_type: str, place: int, one: int, other: int) -> Callable[[ir.Model], None]:
    def swap(model: ir.Model) -> None:
        node = [node for node in model.graph if node.op_type == op_type][place]
        first, second = node.inputs[one], node.inputs[other]
        node.replace_input_with(one, second)
        node.replace_input_with(other, first)

    return swap


def _take_another_residual(model: ir.Model) -> None:
    first, *_, last = (node for node in model.graph if node.op_type == "MetagenStepLinear")
    last.replace_input_with(2, first.inputs[0])


MUTANTS: dict[str, Callable[[ir.Model], None]] = {
    "cos and sin swapped": _swap("MetagenStepAttention", 0, 6, 7),
    "rotation left out": lambda model: _drop(model, "MetagenStepAttention", "rotary", 6, 8),
    "keys for values": _swap("MetagenStepAttention", 0, 1, 2),
    "window ignored": _edit("MetagenStepAttention", 0, window=0),
    "window of one more": _edit("MetagenStepAttention", 0, window=5),
    "scale off": _edit("MetagenStepAttention", 0, scale=0.3 * 2**0.5),
    "a softcap too many": _edit("MetagenStepAttention", 0, softcap=5.0),
    "norm left out": lambda model: _drop(model, "MetagenStepLinear", "norm", 4, 5),
    "another epsilon": _edit("MetagenStepLinear", 0, epsilon=1e-5),
    "biases swapped": _swap("MetagenStepLinear", 0, 6, 7),
    "gate and up swapped": _swap("MetagenStepLinear", 2, 1, 2),
    "another gate": _edit("MetagenStepLinear", 2, gate="gelu"),
    "the residual of another place": _take_another_residual,
}


def _drop(model: ir.Model, op_type: str, flag: str, first: int, end: int) -> None:
    old = next(node for node in model.graph if node.op_type == op_type)
    inputs = [value for index, value in enumerate(old.inputs) if not first <= index < end]
    attributes = {**old.attributes, flag: ir.AttrInt64(flag, 0)}
    new = ir.Node(old.domain, old.op_type, inputs, list(attributes.values()), num_outputs=len(old.outputs))
    model.graph.insert_before(old, new)
    for before, after in zip(old.outputs, new.outputs, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        for index, output in enumerate(model.graph.outputs):
            if output is before:
                model.graph.outputs[index] = after
        before.replace_all_uses_with(after)
    model.graph.remove(old, safe=True)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_kills(mutant: str) -> None:
    """Every limit of this file, also that of float16, is far below what a wrong node does."""
    model, feed = make()
    fused = fuse(model).model
    MUTANTS[mutant](fused)
    assert differ(run(model, feed), run_fused(fused, feed)) > 3 * LIMITS["fp16"]


def test_the_ordinary_graph_is_left_alone() -> None:
    model, feed = make()
    for precision, limit in LIMITS.items():
        result = run_pipeline(model, lowering="tensorrt-8", precision=precision, largest=LARGEST)
        assert not said(result) and not [n for n in result.model.graph if n.domain]
        assert differ(run(model, feed), run(result.model, feed)) < limit


def test_a_weight_beyond_float16_keeps_its_node_in_float32() -> None:
    weight = random(24, 32, seed=6, scale=0.2)
    weight[0, 0] = 1e5
    model, feed = make(weights={"down_weight": weight})
    result = fuse(model, "fp16")
    halves = [node.attributes["half"].value for node in result.model.graph if node.domain]
    assert halves == [1, 1, 1, 1, 0]
    assert any("float16 ends at 65504" in reason for reason in result.keep_fp32)
    assert np.isfinite(run_fused(result.model, feed)[0]).all()


def test_tables_that_are_scaled_stay_float32() -> None:
    """As YaRN does; the ordinary graph computes with them in float16."""
    scaled = "cos_1 = Cos (angle)\n cos = Mul (cos_1, factor)"
    model, feed = make(("cos = Cos (angle)", scaled), weights={"factor": np.array(1.07, np.float32)})
    result = fuse(model, "fp16")
    (product,) = [node for node in result.model.graph if node.op_type == "Mul"]
    assert product.outputs[0].dtype == ir.DataType.FLOAT
    assert [entry.partition(": ")[2].split(":")[0] for entry in result.keep_fp32] == ["angle", "position", "angle"]
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp16"]
