"""Biases that a quantiser wrote as int32 are float32 for TensorRT; what is no such bias stays."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.passes import Range, run_pipeline
from exporters.passes.fold_integer_biases import FoldIntegerBiases
from exporters.passes.shared.graph import read_constant
from tests.passes_support import count_ops, differ, parse, random, run

HEADER = '<ir_version: 10, opset_import: ["": 18]>'
BIAS = np.array([100, -2_000_000, 3, 70_000], np.int32)


@pytest.mark.parametrize(
    "scales", [np.float32(1e-4), np.array([1e-4, 2e-5, 1.0, 3e-3], np.float32)], ids=["one", "each"]
)
def test_a_bias_becomes_what_it_is(scales: np.ndarray) -> None:
    axis = " <axis = 0>" if scales.ndim else ""
    text = f"{HEADER} g (float[2,4] x) => (float[2,4] y) {{ d = DequantizeLinear{axis} (b, s) y = Add (x, d) }}"
    model, feed = parse(text, {"b": BIAS, "s": np.asarray(scales)}), {"x": random(2, 4)}
    before = run(model, feed)
    assert FoldIntegerBiases()(model).modified
    assert count_ops(model) == {"Add": 1}
    assert differ(run(model, feed), before) == 0
    (node,) = model.graph
    constant = read_constant(node.inputs[1])
    assert constant is not None
    assert np.array_equal(constant.numpy(), BIAS.astype(np.float32) * scales)
    wrong = parse(text, {"b": BIAS + 1, "s": np.asarray(scales)})
    assert FoldIntegerBiases()(wrong).modified
    assert differ(run(wrong, feed), before) > 0


def test_what_is_no_constant_bias_stays() -> None:
    weight = f"{HEADER} g (float[2,4] x) => (float[2,4] y) {{ d = DequantizeLinear (w, s) y = MatMul (x, d) }}"
    model = parse(weight, {"w": np.ones((4, 4), np.int8), "s": np.float32(0.1)})
    assert not FoldIntegerBiases()(model).modified
    shifted = f"{HEADER} g (float[2,4] x) => (float[2,4] y) {{ d = DequantizeLinear (b, s, z) y = Add (x, d) }}"
    model = parse(shifted, {"b": BIAS, "s": np.float32(0.1), "z": np.int32(5)})
    assert not FoldIntegerBiases()(model).modified


@pytest.mark.parametrize("lowering", ["tensorrt-8", "tensorrt-10", "tensorrt-11"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_no_target_of_tensorrt_gets_one(lowering: str, precision: str) -> None:
    text = f"""{HEADER} g (float[2,4] x) => (float[2,4] y) {{
        d = DequantizeLinear (b, s) p = MatMul (x, w) y = Add (p, d) }}"""
    model = parse(text, {"b": BIAS, "s": np.float32(1e-4), "w": random(4, 4)})
    result = run_pipeline(model, lowering=lowering, precision=precision, ranges={"x": Range(-4.0, 4.0)})
    biases = [
        node
        for node in result.model.graph
        if node.op_type == "DequantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[0].dtype is not None
        and node.inputs[0].dtype.name == "INT32"
    ]
    assert not biases
