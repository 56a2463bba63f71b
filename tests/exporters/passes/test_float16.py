"""ConvertToFloat16: what is half, what stays float32 and why, and that no node mixes types."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from exporters.passes.convert_to_float16 import ConvertToFloat16
from exporters.passes.shared.types import find_schema, find_type_errors
from specs.errors import GraphError
from tests.passes_support import count_ops, differ, parse, random, run

HEADER = '<ir_version: 10, opset_import: ["": 18]>'


def convert(text: str, weights: dict[str, np.ndarray] | None = None) -> tuple[ir.Model, ir.Model, dict[str, str]]:
    """The model, its float16 form and the reasons by node."""
    model = parse(text, weights)
    result = run_pipeline(model, lowering="tensorrt-10", precision="fp16")
    for node in result.model.graph.all_nodes():
        schema = find_schema(node, result.model.opset_imports)
        assert schema is not None
        assert find_type_errors(node, schema) == []
    return model, result.model, dict(row.split(": ", 1) for row in result.keep_fp32)


def test_a_layer_becomes_half_and_its_interface_does_not() -> None:
    text = f"{HEADER} g (float[B,8] x) => (float[B,4] y) {{ p = MatMul (x, W) [add] s = Add (p, b) y = Relu (s) }}"
    model, half, kept = convert(text, {"W": random(8, 4), "b": random(4, seed=1)})
    feed = {"x": random(3, 8, seed=2)}
    assert differ(run(model, feed), run(half, feed)) < 3e-3
    assert [value.dtype for value in (*half.graph.inputs, *half.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert {value.dtype for value in half.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert count_ops(half) == {"Cast": 2, "MatMul": 1, "Add": 1, "Relu": 1}
    assert kept == {}


def test_the_input_model_is_not_changed() -> None:
    model = parse(f"{HEADER} g (float[B,8] x) => (float[B,4] y) {{ y = MatMul (x, W) }}", {"W": random(8, 4)})
    run_pipeline(model, lowering="tensorrt-10", precision="fp16")
    assert model.graph.initializers["W"].dtype == ir.DataType.FLOAT
    assert count_ops(model) == {"MatMul": 1}


def test_rms_norm_keeps_its_statistics_in_float32() -> None:
    text = f"""{HEADER} g (float[B,8] x) => (float[B,8] y) {{
        two = Constant <value = float {{2.0}}> ()
        eps = Constant <value = float {{0.000001}}> ()
        axes = Constant <value = int64[1] {{-1}}> ()
        h = Relu (x)
        [square] s = Pow (h, two)
        [mean] m = ReduceMean (s, axes)
        [epsilon] e = Add (m, eps)
        [root] r = Sqrt (e)
        [apply] n = Div (h, r)
        [scale] y = Mul (n, w)
    }}"""
    model, half, kept = convert(text, {"w": random(8)})
    feed = {"x": random(3, 8, scale=2000.0)}  # squares of 4e6: infinite in float16
    assert differ(run(model, feed), run(half, feed)) < 3e-3
    assert set(kept) == {"square", "mean", "epsilon", "root", "apply"}
    assert kept["square"].startswith("range: squares, exponentials")
    assert kept["mean"].startswith("follows 'square' (range")
    assert half.graph.node("scale").inputs[1].dtype == ir.DataType.FLOAT16  # type: ignore[union-attr]


def test_angles_are_computed_in_float32() -> None:
    text = f"""{HEADER} g (int64[T] position, float[T,4] x) => (float[T,4] y) {{
        axes = Constant <value = int64[1] {{1}}> ()
        [cast] p = Cast <to: int = 1> (position)
        [column] c = Unsqueeze (p, axes)
        [angle] a = Mul (c, frequency)
        [cosine] k = Cos (a)
        [rotate] y = Mul (k, x)
    }}"""
    model, half, kept = convert(text, {"frequency": np.array([1.0, 0.1, 0.01, 0.001], np.float32)})
    feed = {"position": np.array([0, 1, 2049, 30001]), "x": random(4, 4)}
    assert differ(run(model, feed), run(half, feed)) < 3e-3
    assert set(kept) == {"cast", "column", "angle", "cosine"}
    assert "integers above 2048 are not exact" in kept["cast"]


@pytest.mark.parametrize("masked", [-3.4028234663852886e38, -1e9])
def test_a_mask_saturates_and_gives_no_nan(masked: float) -> None:
    """A row that sees nothing is uniform before and after; -inf would make it NaN."""
    text = f"""{HEADER} g (float[2,4] scores, bool[2,4] visible) => (float[2,4] y) {{
        m = Where (visible, zero, masked)
        s = Add (scores, m)
        y = Softmax (s)
    }}"""
    model, half, _ = convert(text, {"zero": np.float32(0), "masked": np.float32(masked)})
    scores = np.stack([random(4, scale=30), np.full(4, -60, np.float32)])  # -65504 - 60 would be infinite
    feed = {"scores": scores, "visible": np.array([[True, False, True, False], [False] * 4])}
    smallest = min(float(v.const_value.numpy().min()) for v in half.graph.initializers.values() if v.const_value)
    assert smallest == -65504 / 2, "ONNX Runtime may add in float32; TensorRT does not"
    after = run(half, feed)[0]
    assert np.isfinite(after).all()
    assert np.abs(run(model, feed)[0][0] - after[0]).max() < 2e-2
    assert after[1].sum() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("[n] y = Add (x, c)", {"c": np.float32(1e-12)}, "constant 'c' holds 1e-12, float16 is exact from 6.1e-5"),
        ("[n] y = Div (x, c)", {"c": np.float32(1e6)}, "constant 'c' holds 1e+06, float16 ends at 65504"),
        ("[n] y = MatMul (x, c)", {"c": np.full((4, 4), 7e4, np.float32)}, "holds 7e+04, float16 ends at 65504"),
        ("[n] y = Exp (x)", {}, "range: squares, exponentials, logarithms and long sums"),
        ("[n] y = Mul (x, x)", {}, "range: a square overflows float16 from |x| = 256"),
        ("[n] y = Floor (x)", {}, "discontinuous: a rounded input changes its result by a whole step"),
        ("[n] y = Det (x)", {}, "range"),
    ],
)
def test_reasons(body: str, weights: dict[str, np.ndarray], reason: str) -> None:
    model, half, kept = convert(f"{HEADER} g (float[4,4] x) => (float y) {{ {body} }}", weights)
    feed = {"x": np.abs(random(4, 4))}
    assert reason in kept["n"]
    assert differ(run(model, feed), run(half, feed)) == 0


def test_constants_beyond_float16() -> None:
    """A limit saturates to the end of the range, a mask to half of it, and an infinity stays one."""
    text = f"""{HEADER} g (float[4] x, bool[4] visible) => (float clipped, float filled, float hidden) {{
        shape = Constant <value = int64[1] {{4}}> ()
        clipped = Clip (x, low, high)
        fill = ConstantOfShape <value = float[1] {{-1000000000.0}}> (shape)
        filled = Add (x, fill)
        hidden = Where (visible, x, gone)
    }}"""
    weights = {"low": np.float32(-1e6), "high": np.float32(1e6), "gone": np.float32(-np.inf)}
    model = parse(text, weights)
    result = run_pipeline(model, lowering="tensorrt-10", precision="fp16")
    feed = {"x": np.array([-5e4, 1, 2, 5e4], np.float32), "visible": np.array([True, False, True, False])}
    clipped, filled, hidden = run(result.model, feed)
    assert np.abs(clipped - feed["x"]).max() <= 16
    assert np.isfinite(filled[1:]).all() and (filled[1:3] < -3e4).all()
    assert np.isneginf(hidden[1]) and hidden[2] == 2
    assert "ConvertToFloat16: 1 values of 'high' saturate" in result.log


def test_a_dequantized_type_that_is_written_on_the_node_is_kept() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (int8[4] q, float[4] x) => (float[4] y) {
        d = DequantizeLinear <output_dtype: int = 1> (q, scale)
        y = Add (d, x)
    }"""
    model = parse(text, {"scale": np.float32(0.25)})
    half = run_pipeline(model, lowering="tensorrt-11", precision="fp16").model
    for node in half.graph:
        schema = find_schema(node, half.opset_imports)
        assert schema is not None
        assert find_type_errors(node, schema) == []
    feed = {"q": np.array([-3, 0, 5, 127], np.int8), "x": random(4)}
    assert differ(run(model, feed), run(half, feed)) < 3e-3


def test_the_pass_checks_its_own_result() -> None:
    mixed = parse(f"{HEADER} g (float[4] x, float16[4] h) => (float[4] y) {{ [sum] y = Add (x, h) }}")
    with pytest.raises(ir.passes.PostconditionError, match="Add 'sum'"):
        ConvertToFloat16().ensures(mixed)


NUMBERS = [  # [n] must not see half precision: its result would be another one
    ("int64 y", "[n] y = ArgMax (x)", "discontinuous"),
    ("int64 y", "one = Constant <value = int64[1] {1}> () [n] v, y = TopK (x, one)", "discontinuous"),
    ("bool y", "[n] y = Less (x, other)", "discontinuous"),
    ("bool y", "[n] y = GreaterOrEqual (x, other)", "discontinuous"),
    ("bool y", "[n] y = Equal (x, other)", "discontinuous"),
    ("int64 y", "[n] y = Cast <to: int = 7> (x)", "discontinuous"),
    ("float y", "[n] y = Round (x)", "discontinuous"),
    ("float y", "[n] y = Ceil (x)", "discontinuous"),
    ("float y", "[n] y = Sign (x)", "discontinuous"),
    ("int64 y", "[n] v, y = MaxPool <kernel_shape = [2, 2]> (image)", "discontinuous"),
    ("float y", "[n] y = Cast <to: int = 1> (index)", "index"),
    ("float y", "zero = Constant <value = int64 {0}> () [n] y = CumSum (x, zero)", "range"),
    ("float y", "[n] y = ReduceSum (x)", "range"),
    ("float y", "[n] y = ReduceL2 (x)", "range"),
    ("float y", "two = Constant <value = float {2.0}> () [n] y = Pow (x, two)", "range"),
    ("float y", "[n] y = Log (x)", "range"),
    ("float y", "[n] y = Softplus (x)", "range"),
    ("float y", '[n] y = ScatterND <reduction = "add"> (x, place, other)', "range"),
    ("float y", "three = Constant <value = float {3.0}> () [n] a = Mul (x, three) y = Sin (a)", "angle"),
]


@pytest.mark.parametrize(("output", "body", "family"), NUMBERS, ids=[body for _, body, _ in NUMBERS])
def test_what_would_change_stays_float32(output: str, body: str, family: str) -> None:
    inputs = "float[4,4] x, float[4,4] other, float[1,2,4,4] image, int64[4] index, int64[4,1] place"
    model, half, kept = convert(f"{HEADER} g ({inputs}) => ({output}) {{ {body} }}")
    x = np.abs(random(4, 4)) * 300
    feed = {
        "x": x,
        "other": np.nextafter(x, np.float32(0)),
        "image": random(1, 2, 4, 4, seed=1),
        "index": np.array([0, 3, 2049, 70001]),
        "place": np.array([[1], [1], [0], [3]]),
    }
    assert kept["n"].startswith(family)
    for before, after in zip(run(model, feed), run(half, feed), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("[n] y = Mul (x, c)", {"c": np.array([1, 1e-8, 2, 3], np.float32)}),
        ("[n] y = Add (x, c)", {"c": np.array([1e-6, 0, 0, 0], np.float32)}),
        (
            "t = Transpose (x) w = Concat <axis: int = 1> (t, t, t, t, t) [n] y = BatchNormalization (w, a, a, a, c)",
            {"a": np.ones(20, np.float32), "c": np.where(np.arange(20) == 7, 1e-7, 1).astype(np.float32)},
        ),
    ],
)
def test_small_constants_that_matter(body: str, weights: dict[str, np.ndarray]) -> None:
    _, _, kept = convert(f"{HEADER} g (float[4,4] x) => (float y) {{ {body} }}", weights)
    assert "float16 is exact from 6.1e-5" in kept["n"]


def test_a_few_small_weights_of_many_do_not_matter() -> None:
    weight = random(8, 8)
    weight[0, 0] = 1e-7
    _, _, kept = convert(f"{HEADER} g (float[4,8] x) => (float[4,8] y) {{ y = MatMul (x, W) }}", {"W": weight})
    assert kept == {}


def test_operators_outside_of_the_standard_domain_and_their_own_scores() -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "ai.onnx.ml": 3]> g (float[4,4] x) => (float[4,4] y) {
        [n] y = ai.onnx.ml.Binarizer <threshold: float = 0.1> (x)
    }"""
    kept = run_pipeline(parse(text), lowering="tensorrt-10", precision="fp16").keep_fp32
    assert kept == ("n: discontinuous: trees, scalers and encoders compare and index",)
    text = """<ir_version: 10, opset_import: ["": 23]>
    g (float[1,2,4,8] q) => (float[1,2,4,8] y, float[1,2,4,4] scores) {
        [n] y, k, v, scores = Attention <is_causal: int = 1> (q, q, q)
    }"""
    kept = run_pipeline(parse(text), lowering="tensorrt-11", precision="fp16").keep_fp32
    assert kept == ("n: range: it returns its masked scores, which reach the lowest float32",)


def test_reasons_hold_inside_of_branches() -> None:
    text = f"""{HEADER} g (bool c, float[2,8] x) => (float[2,8] y) {{
        y = If (c) <
            then_branch = t () => (float[2,8] a) {{ [inside] a = Exp (x) }},
            else_branch = e () => (float[2,8] b) {{ b = Neg (x) }}
        >
    }}"""
    _, _, kept = convert(text)
    assert kept["inside"].startswith("range")


def test_subgraphs_are_converted_inside() -> None:
    text = f"""{HEADER} g (bool c, float[2,8] x) => (float[2,4] y) {{
        h = Relu (x)
        [branch] y = If (c) <
            then_branch = t () => (float[2,4] a) {{ a = MatMul (h, W) }},
            else_branch = e () => (float[2,4] b) {{ p = MatMul (h, W) b = Neg (p) }}
        >
    }}"""
    model, half, kept = convert(text, {"W": random(8, 4)})
    for condition in (True, False):
        feed = {"c": np.array(condition), "x": random(2, 8, seed=1)}
        assert differ(run(model, feed), run(half, feed)) < 3e-3
    assert kept == {"branch": "control flow: its inputs and outputs stay float32, its body is converted"}
    products = [node for node in half.graph.all_nodes() if node.op_type == "MatMul"]
    assert {node.outputs[0].dtype for node in products} == {ir.DataType.FLOAT16}
    assert sum(node.op_type == "Cast" for node in half.graph) == 1  # x; both branches read the half h


def test_casts_are_shared() -> None:
    body = "a = MatMul (x, W) b = Relu (x) c = Tanh (x) d = Add (b, c) s = Concat <axis: int = 1> (a, d) y = Relu (s)"
    _, half, _ = convert(f"{HEADER} g (float[2,4] x) => (float y) {{ {body} }}", {"W": random(4, 4)})
    assert count_ops(half)["Cast"] == 2


def test_a_model_that_mixes_types_itself_is_refused() -> None:
    text = f"{HEADER} g (float[4] x, float16[4] h) => (float[4] y) {{ [sum] y = Add (x, h) }}"
    with pytest.raises(GraphError, match=r"Add 'sum' mixes types"):
        run_pipeline(parse(text), lowering="tensorrt-10", precision="fp32")


def test_bfloat16_needs_no_range_reasons() -> None:
    text = f"{HEADER} g (float[4,4] x) => (float[4,4] y) {{ y = MatMul (x, c) }}"
    result = run_pipeline(
        parse(text, {"c": np.full((4, 4), 7e4, np.float32)}), lowering="tensorrt-11", precision="bf16"
    )
    assert result.keep_fp32 == ()
    (weight,) = result.model.graph.initializers.values()
    assert weight.dtype == ir.DataType.BFLOAT16
    assert float(weight.const_value.numpy().astype(np.float32)[0, 0]) == pytest.approx(7e4, rel=4e-3)  # type: ignore[union-attr]
