"""FuseStep: where it does not fire, what it leaves, and what it says of that; the numbers stay."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.passes import run_pipeline, takes_plugins
from exporters.passes.infer_types import InferTypes
from exporters.passes.shared.keep_float32 import KEEP_KEY
from tests.exporters.passes.step_layer import FUSED, LARGEST, LAYER, LIMITS, fuse, make, read, run_fused, said
from tests.passes_support import count_ops, differ, parse, random, run


@pytest.mark.parametrize(("lowering", "precision", "largest", "takes"), [
    ("tensorrt-8", "fp32", LARGEST, True),
    ("tensorrt-8", "fp16", {"B": 16}, True),
    ("tensorrt-8", "fp16", {"B": 17}, False),  # the kernels are made for few rows
    ("tensorrt-8", "fp16", {"S": 100}, False),
    ("tensorrt-8", "int8", LARGEST, False),
    ("tensorrt-10", "fp16", LARGEST, False),
    ("tensorrt-11", "fp16", LARGEST, False),
    ("onnxruntime", "fp32", LARGEST, False),
])  # fmt: skip
def test_where_it_fires(lowering: str, precision: str, largest: dict[str, int], takes: bool) -> None:
    model, _ = make()
    assert takes_plugins(model, lowering, precision, largest=largest) is takes
    if not takes and precision != "int8":
        result = run_pipeline(model, lowering=lowering, precision=precision, plugins=True, largest=largest)
        assert not [node for node in result.model.graph if node.domain == "metagen.plugin"]


def test_a_fixed_batch_needs_no_name() -> None:
    for batch, takes in ((4, True), (17, False)):
        model = read(LAYER.replace("[B,", f"[{batch},").replace("[B]", f"[{batch}]"))
        assert takes_plugins(model, "tensorrt-8", "fp16") is takes


#: Change -> what is left of the layer beside what is always there, and what the log says of the rest.
NEAR_MISSES: dict[str, tuple[list[tuple[str, str]], dict[str, int], str]] = {
    "keys rotated by other tables": (
        [("Mul (kb, sin)", "Mul (kb, cos)")], {"Split": 2, "Concat": 2}, "0 with their rotation",
    ),
    "the halves in another order": (
        [("Concat <axis = -1> (q3, q6)", "Concat <axis = -1> (q6, q3)")], {"Split": 2}, "0 with their rotation",
    ),
    "a difference the other way": ([("Sub (q1, q2)", "Sub (q2, q1)")], {"Split": 2}, "0 with their rotation"),
    "a norm over another axis": (
        [("ReduceMean (x2, last)", "ReduceMean (x2, first)")], {"ReduceMean": 1, "Pow": 1}, "1 with their norm",
    ),
    "a norm of fourth powers": ([("Pow (x, two)", "Pow (x, four)")], {"Pow": 1}, "1 with their norm"),
    "a norm of another value": ([("Mul (x, x_inverse)", "Mul (xx, x_inverse)"), ("cos = Cos (angle)",
        "cos = Cos (angle)\n xx = Abs (x)")], {"Pow": 1, "Abs": 1}, "1 with their norm"),
    "a norm without its weight": (
        [("Mul (x_scaled, n_weight)", "Identity (x_scaled)")], {"Pow": 1}, "1 with their norm",
    ),
    "a sum that is read twice": (
        [("y = Add (down, h)", "yy = Add (down, down)\n y = Add (yy, h)")], {"Add": 2}, "1 with their residual",
    ),
    "a bias of another shape": (
        [("Add (q_product, q_bias)", "Add (q_product, wide_bias)")], {"Add": 1}, "6 products became 5",
    ),
    "a matrix that is computed": (
        [("MatMul (a_rows, o_weight)", "MatMul (a_rows, turned)"), ("cos = Cos (angle)",
        "cos = Cos (angle)\n turned = Abs (o_weight)")], {"MatMul": 1}, "5 products became 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("miss", NEAR_MISSES)
def test_a_near_miss_stays_with_its_numbers(miss: str) -> None:
    changes, left, wanted = NEAR_MISSES[miss]
    more = {"first": np.array([0]), "four": np.float32(4), "wide_bias": random(1, 1, 32, seed=30)}
    model, feed = make(*changes, weights={name: np.asarray(array) for name, array in more.items()})
    result = fuse(model)
    ops = count_ops(result.model)
    assert {name: ops[name] for name in left} == left
    assert wanted in said(result)[-1]
    assert ops["MetagenStepAttention"] == 1
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


def test_a_norm_that_others_read_stays_for_them() -> None:
    model, feed = make(("y = Add (down, h)", "yy = Add (down, h)\n y = Add (yy, n)"))
    result = fuse(model)
    assert count_ops(result.model) == {**FUSED, **dict.fromkeys(
        ("Pow", "ReduceMean", "Sqrt", "Reciprocal"), 1), "Mul": 2, "Add": 2}  # fmt: skip
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


#: Two such nodes beside one that is a step.
OTHERS = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,4,1,8] q, float[B,2,1,8] k, float[B,2,S,8] pk, float[B,4,2,8] q2, float[B,2,2,8] k2,
   float[B,1,1,512] wide, float[B,1,S,512] pw, int64[B] start)
  => (float[B,4,1,8] y, float[B,4,2,8] z, float[B,1,1,512] w) {
    y, nk, nv = metagen.MetagenCachedAttention <scale: float = 0.3, groups: int = 2> (q, k, k, pk, pk, start)
    z, ok, ov = metagen.MetagenCachedAttention <scale: float = 0.3, groups: int = 2> (q2, k2, k2, pk, pk, start)
    w, wk, wv = metagen.MetagenCachedAttention <scale: float = 0.1, groups: int = 1> (wide, wide, wide, pw, pw, start)
}
"""


def test_attention_that_the_plugin_does_not_take_follows_the_ordinary_path() -> None:
    model = parse(OTHERS)
    InferTypes()(model)
    feed = {"q": random(2, 4, 1, 8), "k": random(2, 2, 1, 8, seed=1), "pk": random(2, 2, 6, 8, seed=2)}
    feed |= {"q2": random(2, 4, 2, 8, seed=3), "k2": random(2, 2, 2, 8, seed=4), "start": np.array([1, 3])}
    feed |= {"wide": random(2, 1, 1, 512, seed=5), "pw": random(2, 1, 6, 512, seed=6)}
    result = fuse(model)
    assert [line.partition("stays: ")[2] for line in said(result)[:2]] == [
        "it takes 2 new tokens, not one",
        "of heads of 512 (the plugin takes up to 256)",
    ]
    assert count_ops(result.model)["MetagenStepAttention"] == 1 and count_ops(result.model)["Softmax"] == 2
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]
    model.graph.remove(model.graph[0], safe=False)
    assert not takes_plugins(model, "tensorrt-8", "fp32", largest=LARGEST), "no step is left"


def test_what_a_model_keeps_in_float32_is_not_fused() -> None:
    for name, left, line in (
        ("MatMul", {"MatMul": 1}, "stays: the model keeps it in float32"),
        ("MetagenGatedLinear", {"Sigmoid": 1, "MatMul": 2}, "stays: the model keeps it in float32"),
    ):
        model, feed = make()
        node = next(node for node in model.graph if node.op_type == name)
        node.metadata_props[KEEP_KEY] = "range: said so"
        result = fuse(model)
        ops = count_ops(result.model)
        assert {op: ops[op] for op in left} == left and said(result)[0].endswith(line)
        assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


def test_more_rows_than_the_step_has_stay_as_they_are() -> None:
    model, feed = make(
        ("float[B,1,1,4] angle)", "float[B,1,1,4] angle, float[T,1,32] other, float[B,7,32] frames)"),
        ("=> (float[B,1,32] y,", "=> (float[T,1,32] z, float[B,7,32] w, float[B,1,32] y,"),
        ("cos = Cos (angle)", "cos = Cos (angle)\n z = MatMul (other, o_weight)\n w = MatMul (frames, o_weight)"),
    )
    feed |= {"other": random(40, 1, 32, seed=31), "frames": random(3, 7, 32, seed=32)}
    result = fuse(model)
    assert [line.partition("stays: ")[2] for line in said(result)[:2]] == [
        "it has more rows than the batch of the step: ['T', 1, 32]",
        "it has more rows than the batch of the step: ['B', 7, 32]",
    ]
    assert count_ops(result.model)["MatMul"] == 2
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


PRODUCTS = """cos = Cos (angle)
    z = MatMul (x, o_weight)
    z1 = MatMul (x, k_weight)
    z2 = MatMul (x, v_weight)
    z3 = MatMul (x, k_weight)
    z4 = MatMul (x, v_weight)
    z5 = Add (z4, v_bias)
    z6 = Mul (z1, z2)
    z7 = Mul (z3, z5)
    w = Mul (z6, z7)"""


def test_four_products_of_one_value_are_two_nodes() -> None:
    """And one with a bias stands apart from those without."""
    model, feed = make(
        ("=> (float[B,1,32] y,", "=> (float[B,1,32] z, float[B,1,16] w, float[B,1,32] y,"),
        ("cos = Cos (angle)", PRODUCTS),
    )
    result = fuse(model)
    added = [node for node in result.model.graph if node.domain and node.inputs[0] is result.model.graph.inputs[0]]
    kinds = [tuple(node.attributes[name].value for name in ("weights", "bias", "norm")) for node in added]
    assert sorted(kinds) == [(1, 0, 0), (1, 1, 0), (3, 0, 0), (3, 1, 1)]
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


def test_an_add_of_two_products_is_the_residual_of_one() -> None:
    two = "o1 = MatMul (a_rows, o_weight)\n o2 = MatMul (x, o_weight)\n o = Add (o1, o2)"
    model, feed = make(("o = MatMul (a_rows, o_weight)", two))
    result = fuse(model)
    assert said(result)[-1].endswith("7 products became 5, 2 with their norm, 2 with their residual")
    assert count_ops(result.model)["Add"] == 1  # of x
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


def test_rows_of_a_matrix_are_the_batch_of_the_step_or_stay() -> None:
    more = "cos = Cos (angle)\n z = MatMul (of_b, o_weight)\n w = MatMul (of_n, o_weight)\n u = MatMul (few, o_weight)"
    model, feed = make(
        ("float[B,1,1,4] angle)", "float[B,1,1,4] angle, float[B,32] of_b, float[N,32] of_n, float[9,32] few)"),
        ("=> (float[B,1,32] y,", "=> (float[B,32] z, float[N,32] w, float[9,32] u, float[B,1,32] y,"),
        ("cos = Cos (angle)", more),
    )
    feed |= {"of_b": random(3, 32, seed=31), "of_n": random(40, 32, seed=32), "few": random(9, 32, seed=33)}
    result = fuse(model)
    assert said(result)[0].endswith("stays: it has more rows than the batch of the step: ['N', 32]")
    assert count_ops(result.model)["MatMul"] == 1 and count_ops(result.model)["MetagenStepLinear"] == 6
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]


@pytest.mark.parametrize("gemm", ["Gemm <alpha = 2.0> (xs, o_weight)", "Gemm <transA = 1> (o_weight, o_weight)",
    "Gemm <beta = 0.5> (xs, o_weight, q_bias)", "Gemm (xs, o_weight, one)"])  # fmt: skip
def test_a_gemm_that_does_more_stays(gemm: str) -> None:
    changes = [("=> (float[B,1,32] y,", "=> (float[R,32] z, float[B,1,32] y,")]
    changes.append(("cos = Cos (angle)", f"cos = Cos (angle)\n xs = Squeeze (x, middle)\n z = {gemm}"))
    model, feed = make(*changes, weights={"middle": np.array([1]), "one": np.ones(1, np.float32)})
    result = fuse(model)
    ops = count_ops(result.model)
    assert (ops["Gemm"], ops["MetagenStepLinear"]) == (1, 4)
    assert differ(run(model, feed), run_fused(result.model, feed)) < LIMITS["fp32"]
