"""A session where ONNX Runtime's own optimiser spoils the graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from engines.runtime.executors.onnxruntime import make_ort_session

_TEXT = """
<ir_version: 10, opset_import: ["" : %d]>
g (float[1, 4, 8] x) => (float[1, 4, 8] y) {
  q = QuantizeLinear (x, scale, zero)
  d = DequantizeLinear (q, scale, zero)
  w = DequantizeLinear (weight, scale, zero)
  p = MatMul (d, w)
  y = Add (p, bias)
}"""


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_a_quantised_product_of_fixed_sizes_is_loaded_and_right(opset: int) -> None:
    """ONNX Runtime 1.31 makes a Gemm of it behind a Reshape, and a QuantizeLinear of two types of that."""
    random = np.random.default_rng(0)
    weights = {
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "weight": random.integers(-127, 128, (8, 8)).astype(np.int8),
        "bias": random.normal(size=8).astype(np.float32),
    }
    model = onnx.parser.parse_model(_TEXT % opset)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    x = random.normal(size=(1, 4, 8)).astype(np.float32)
    rounded = np.clip(np.rint(x / np.float32(0.02)), -128, 127) * np.float32(0.02)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = make_ort_session(model.SerializeToString(), options, ["CPUExecutionProvider"])
    expected = rounded @ (weights["weight"] * np.float32(0.02)) + weights["bias"]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
