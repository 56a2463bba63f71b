"""INT8: where Q/DQ stands, what is left out, and that a wrong scale or zero point would be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporters.calibration.measure import measure_ranges
from exporters.passes import Range, list_quantizable_tensors, run_pipeline
from exporters.passes.int8.weighted import quantize_weight, round_scale
from specs.errors import CalibrationError
from tests.passes_support import count_ops, differ, parse, random, run

TWO_LAYERS = """<ir_version: 10, opset_import: ["": 18]>
g (float[B,16,64] x) => (float[B,16,8] y) {
    [first] p = MatMul (x, W1)
    s = Add (p, b1)
    h = Relu (s)
    [second] r = MatMul (h, W2)
    t = Add (r, x)
    [head] y = MatMul (t, W3)
}
"""
WEIGHTS = {
    "W1": random(64, 96, seed=1, scale=0.1),
    "b1": random(96, seed=2),
    "W2": random(96, 64, seed=3, scale=0.1),
    "W3": random(64, 8, seed=4, scale=0.1),
}
FEED = {"x": random(4, 16, 64, seed=5)}
RANGES = {"x": Range(-4.2, 4.1), "h": Range(0.0, 5.5), "t": Range(-7.0, 7.0)}
TENSORRT = ["tensorrt-8", "tensorrt-10", "tensorrt-11"]


def quantize(lowering: str) -> tuple[ir.Model, ir.Model, tuple[str, ...]]:
    model = parse(TWO_LAYERS, WEIGHTS)
    result = run_pipeline(model, lowering=lowering, precision="int8", ranges=RANGES)
    return model, result.model, result.log


def test_tensors_to_calibrate() -> None:
    assert list_quantizable_tensors(parse(TWO_LAYERS, WEIGHTS)) == ("x", "h")


@pytest.mark.parametrize("lowering", [*TENSORRT, "onnxruntime"])
def test_numbers_are_near(lowering: str) -> None:
    model, quantized, log = quantize(lowering)
    # 8 bits on two layers of random weights: a step is 1/127 of the range, and 96 of them average out
    assert differ(run(model, FEED), run(quantized, FEED)) < 0.12
    assert any("2 nodes take int8" in line for line in log)
    assert any("'head' is not int8: the last layer's rounding is the output's" in line for line in log)


@pytest.mark.parametrize("lowering", TENSORRT)
def test_only_the_inputs_of_products_are_quantized(lowering: str) -> None:
    _, quantized, _ = quantize(lowering)
    for node in quantized.graph:
        if node.op_type == "DequantizeLinear":
            assert {use.node.op_type for use in node.outputs[0].uses()} == {"MatMul"}
            zero = node.inputs[2]
            assert zero is not None
            assert zero.const_value is not None
            assert not zero.const_value.numpy().any()
    assert count_ops(quantized)["DequantizeLinear"] == 4


def test_tensorrt_8_stores_float_weights_and_float32_scales() -> None:
    _, quantized, _ = quantize("tensorrt-8")
    assert quantized.opset_imports[""] == 17
    assert count_ops(quantized)["QuantizeLinear"] == 4
    assert {v.dtype for n, v in quantized.graph.initializers.items() if n.endswith("scale")} == {ir.DataType.FLOAT}
    assert quantized.graph.initializers["W1"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("lowering", ["tensorrt-10", "tensorrt-11"])
def test_newer_ones_store_int8_weights_and_half_scales(lowering: str) -> None:
    _, quantized, _ = quantize(lowering)
    assert quantized.opset_imports[""] >= 19
    assert count_ops(quantized)["QuantizeLinear"] == 2
    assert quantized.graph.initializers["W1/int8"].dtype == ir.DataType.INT8
    dtypes = {n.outputs[0].dtype for n in quantized.graph if n.op_type in ("MatMul", "DequantizeLinear", "Relu")}
    assert dtypes == {ir.DataType.FLOAT16}


def test_onnxruntime_multiplies_integers_by_rows() -> None:
    _, quantized, _ = quantize("onnxruntime")
    rows = {"ReduceMax": 2, "ReduceMin": 1, "Neg": 1, "Max": 2, "Div": 2, "QuantizeLinear": 2}  # h >= 0
    assert count_ops(quantized) == {**rows, "MatMulIntegerToFloat": 2, "Mul": 2, "Relu": 1, "Add": 2, "MatMul": 1}
    assert quantized.graph.node("first").op_type == "MatMulIntegerToFloat"


@pytest.mark.parametrize(
    ("lowering", "op_type"),
    [("tensorrt-8", "MatMul"), ("tensorrt-10", "MatMul"), ("tensorrt-11", "MatMul"), ("onnxruntime", None)],
)
def test_a_wrong_scale_would_be_seen(lowering: str, op_type: str | None) -> None:
    """Once for the activation and once for the weight, at the dequantizing end only."""
    for port in (0, 1) if op_type else (1,):
        model, quantized, _ = quantize(lowering)
        node = quantized.graph.node("first")
        if op_type:
            source = node.inputs[port]
            assert source is not None
            dequantize = source.producer()
            assert dequantize is not None
            scaled = dequantize, 1
        else:
            scaled = node, 3
        _scale(quantized, *scaled, 2**0.5)
        assert differ(run(model, FEED), run(quantized, FEED)) > 0.25


def _scale(model: ir.Model, node: ir.Node, index: int, factor: float) -> None:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    dtype = value.const_value.dtype
    wrong = ir.tensor((value.const_value.numpy() * factor).astype(dtype.numpy()), dtype=dtype, name="wrong")
    other = ir.Value(name="wrong", const_value=wrong, type=value.type, shape=value.shape)
    model.graph.register_initializer(other)
    node.replace_input_with(index, other)


@pytest.mark.parametrize("ranges", [None, {}])
def test_without_ranges_nothing_is_guessed(ranges: dict[str, Range] | None) -> None:
    with pytest.raises(CalibrationError, match="int8 for TensorRT needs calibrated ranges, and there are none"):
        run_pipeline(parse(TWO_LAYERS, WEIGHTS), lowering="tensorrt-10", precision="int8", ranges=ranges)


def test_a_tensor_without_a_range_stays_in_high_precision() -> None:
    result = run_pipeline(
        parse(TWO_LAYERS, WEIGHTS), lowering="tensorrt-10", precision="int8", ranges={"x": RANGES["x"]}
    )
    assert any("'second' is not int8: its input 'h' has no calibrated range" in line for line in result.log)


@pytest.mark.parametrize("wrong", [Range(0, float("inf")), Range(float("nan"), 1), Range(1, -1)])
def test_a_range_that_is_none_is_refused(wrong: Range) -> None:
    with pytest.raises(CalibrationError, match="the range of 'x' is not usable"):
        run_pipeline(parse(TWO_LAYERS, WEIGHTS), lowering="tensorrt-10", precision="int8", ranges={"x": wrong})


def test_an_activation_s_scale_reaches_the_end_of_its_range_and_no_further() -> None:
    ranges = {"x": Range(-4.2, 1.0), "h": Range(0.0, 5.5)}
    result = run_pipeline(parse(TWO_LAYERS, WEIGHTS), lowering="tensorrt-8", precision="int8", ranges=ranges)
    for name, largest in (("x", 4.2), ("h", 5.5)):
        scale = result.model.graph.initializers[f"{name}/scale"].const_value
        assert scale is not None
        assert largest / 127 <= float(scale.numpy()) <= largest / 127 * 1.001


def test_a_weight_that_is_not_finite_stays_as_it_is() -> None:
    broken = {**WEIGHTS, "W1": np.where(np.arange(96) == 5, np.float32(np.inf), WEIGHTS["W1"])}
    for lowering in ("tensorrt-8", "onnxruntime"):
        result = run_pipeline(parse(TWO_LAYERS, broken), lowering=lowering, precision="int8", ranges=RANGES)
        assert any("'first' is not int8: its weight is not finite" in line for line in result.log)
        assert count_ops(result.model)["MatMul"] >= 1


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_are_within_half_a_step(axis: int | None) -> None:
    array = random(5, 7, scale=3)
    array[:, 2] = 0
    lazy, scale = quantize_weight(ir.tensor(array), axis)
    quantized = lazy.numpy()
    shaped = scale if axis is None else np.expand_dims(scale, 1 - axis)
    assert scale.shape == (() if axis is None else (array.shape[axis],))
    assert (np.abs(array - quantized * shaped) <= shaped / 2 * 1.01).all()
    largest = np.abs(quantized).max(axis=None if axis is None else 1 - axis)
    assert np.isin(largest, (0, 126, 127)).all(), "all of the range is used"
    assert (scale[largest == 0] == 1).all()
    assert (scale.astype(np.float16).astype(np.float32) == scale).all()


def test_scales_never_round_down() -> None:
    exact = np.abs(random(1000, scale=0.01))
    assert (round_scale(exact) >= exact).all()


CONVOLUTIONS = """<ir_version: 10, opset_import: ["": 18]>
g (float[B,3,8,8] image) => (float[B,4] y) {
    n = Mul (image, half)
    [patch] p = Conv (n, K1)
    [middle] q = Conv (p, K2)
    [up] u = ConvTranspose (q, K3)
    f = Flatten (u)
    [head] y = Gemm <transB: int = 1> (f, W)
}
"""


def test_convolutions_by_channel_and_the_first_left_out(tmp_path: Path) -> None:
    weights = {
        "half": np.float32(0.5),
        "K1": random(8, 3, 1, 1),
        "K2": random(32, 8, 3, 3, seed=1, scale=0.2),
        "K3": random(32, 6, 3, 3, seed=2, scale=0.2),
        "W": random(4, 384, seed=3, scale=0.1),
    }
    model = parse(CONVOLUTIONS, weights)
    feed = {"image": random(2, 3, 8, 8)}
    ir.save(model, tmp_path / "model.onnx")
    ranges = measure_ranges(tmp_path / "model.onnx", list_quantizable_tensors(model), [feed])
    assert set(ranges) == {"p", "q", "f"}
    result = run_pipeline(model, lowering="tensorrt-10", precision="int8", ranges=ranges)
    axes = {
        node.inputs[0].name: node.attributes["axis"].as_int()
        for node in result.model.graph
        if node.op_type == "DequantizeLinear" and "axis" in node.attributes and node.inputs[0] is not None
    }
    assert axes == {"K2/int8": 0, "K3/int8": 1, "W/int8": 0}
    assert any("'patch' is not int8: the first convolution reads the raw input" in line for line in result.log)
    assert differ(run(model, feed), run(result.model, feed)) < 0.1


SQUARE = random(64, 64, seed=1, scale=0.1)


@pytest.mark.parametrize(
    ("body", "weights", "counts", "reason"),
    [
        ("y = Gemm <transA: int = 1, transB: int = 1> (x, W)", {"W": random(64, 64, scale=0.1)}, (0, 0), ""),
        ("[n] y = Gemm <alpha: float = 2.0> (x, W, b)", {"W": SQUARE, "b": random(64)}, (0, 1), "its alpha and beta"),
        ("[n] y = Gemm <beta: float = 0.5> (x, W, b)", {"W": SQUARE, "b": random(64)}, (0, 1), "its alpha and beta"),
        ("[n] y = Gemm (x, W, b)", {"W": SQUARE, "b": random(64, 1)}, (1, 1), ""),
        ("y = Gemm (x, W, b)", {"W": SQUARE, "b": random(64)}, (1, 1), ""),
        ("p = MatMul (x, W) y = Add (p, b)", {"W": SQUARE, "b": random(64)}, (1, 1), ""),
        ("p = MatMul (x, W) y = Add (p, b)", {"W": SQUARE, "b": random(1)}, (1, 1), ""),
        ("p = MatMul (x, W) n = Neg (p) s = Add (p, b) y = Mul (s, n)", {"W": SQUARE, "b": random(64)}, (1, 1), ""),
        ("p = MatMul (x, W) s = Add (p, b) y = MatMul (s, W)", {"W": SQUARE, "b": random(64)}, (2, 2), ""),
        ("p = MatMul (x, W) r = Relu (p) y = Gemm <transB: int = 1> (r, W)", {"W": SQUARE}, (2, 2), ""),
        ("p = MatMul (x, W) r = Relu (p) y = MatMul (r, V)", {"W": SQUARE, "V": SQUARE * 3}, (2, 2), ""),
        ("p = MatMul (x, W) n = Neg (W) y = MatMul (p, n)", {"W": SQUARE}, (1, 1), ""),  # read as it is, too
        ("y = MatMul (x, W)", {"W": random(2, 64, 64, scale=0.1)}, (0, 0), ""),
    ],
)
def test_products_of_every_form(
    body: str, weights: dict[str, np.ndarray], counts: tuple[int, int], reason: str, tmp_path: Path
) -> None:
    """`counts`: the products that become int8 in ONNX Runtime and in TensorRT; the numbers stay near in both."""
    model = parse(f'<ir_version: 10, opset_import: ["": 18]> g (float[64,64] x) => (float y) {{ {body} }}', weights)
    feed = {"x": random(64, 64, seed=5)}
    ir.save(model, tmp_path / "model.onnx")
    ranges = measure_ranges(tmp_path / "model.onnx", list_quantizable_tensors(model), [feed])
    dynamic = run_pipeline(model, lowering="onnxruntime", precision="int8")
    static = run_pipeline(model, lowering="tensorrt-8", precision="int8", ranges=ranges or {"none": Range(0, 1)})
    for result in (dynamic, static):
        assert differ(run(model, feed), run(result.model, feed)) < 0.15
    assert count_ops(dynamic.model)["MatMulIntegerToFloat"] == counts[0]
    quantized = {v.producer() for n in static.model.graph if n.op_type in ("MatMul", "Gemm") for v in n.inputs if v}
    assert sum(node is not None and node.op_type == "DequantizeLinear" for node in quantized) >= 2 * (counts[1] > 0)
    assert any(f"{counts[1]} nodes take int8" in line for line in static.log)
    assert not reason or any(f"'n' is not int8: {reason}" in line for line in dynamic.log)


def test_an_output_in_front_of_the_bias_is_kept() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[4,64] x) => (float[4,64] p, float[4,64] y) { p = MatMul (x, W) y = Add (p, b) }"""
    model = parse(text, {"W": SQUARE, "b": random(64)})
    feed = {"x": random(4, 64, seed=5)}
    result = run_pipeline(model, lowering="onnxruntime", precision="int8")
    assert [value.name for value in result.model.graph.outputs] == ["p", "y"]
    assert differ(run(model, feed), run(result.model, feed)) < 0.1


def test_one_weight_read_both_ways_has_scales_of_both_axes() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[64,64] x) => (float[64,64] y) {
        p = MatMul (x, W) r = Relu (p) y = Gemm <transB: int = 1> (r, W)
    }"""
    ranges = {"x": Range(-4, 4), "r": Range(0, 4)}
    result = run_pipeline(parse(text, {"W": SQUARE}), lowering="tensorrt-10", precision="int8", ranges=ranges)
    axes = [n.attributes["axis"].as_int() for n in result.model.graph if "axis" in n.attributes]
    assert sorted(axes) == [0, 1]


def test_a_grouped_transposed_convolution_has_one_scale() -> None:
    """Its outputs lie along two axes of the weight, and a scale can follow one."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[2,32,4,4] x) => (float[2,12,6,6] y) {
        c = Relu (x) u = ConvTranspose <group: int = 2> (c, K) y = Sqrt (u)
    }"""
    model = parse(text, {"K": random(32, 6, 3, 3, scale=0.2)})
    result = run_pipeline(model, lowering="tensorrt-8", precision="int8", ranges={"c": Range(0, 4)})
    scale = result.model.graph.initializers["K/scale"].const_value
    assert scale is not None and scale.shape.numpy() == ()
