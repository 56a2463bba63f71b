"""float16 on CPUs: weights are stored in it, all is computed in float32; and a graph where they are not is seen."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from engines.onnx_files.precision import require_stored_weights
from exporters.passes import run_pipeline
from specs.errors import BuildError
from tests.passes_support import count_ops, parse, random, run

TEXT = """<ir_version: 10, opset_import: ["": 18]> g (int64[B,T] ids, float[B,8,16] x) => (float[B,T,32] y, float y2) {
    e = Gather (table, ids)
    [first] p = MatMul (e, W) q = Add (p, b) y = Relu (q)
    [second] y2 = Conv (x, K)
}"""
WEIGHTS = {
    "table": random(50, 24, seed=1),
    "W": random(24, 32, seed=2, scale=0.2),
    "b": random(32, seed=3),
    "K": random(4, 8, 3, seed=4, scale=0.2),
}
FEED = {"ids": np.arange(12).reshape(2, 6) * 4, "x": random(2, 8, 16, seed=5)}


def lower(weights: dict[str, np.ndarray]) -> tuple[ir.Model, tuple[str, ...]]:
    result = run_pipeline(parse(TEXT, weights), lowering="onnxruntime", precision="fp16")
    return result.model, result.keep_fp32


def test_weights_are_rounded_once_and_nothing_else_is() -> None:
    model, kept = lower(WEIGHTS)
    stored = {name: value.dtype for name, value in model.graph.initializers.items() if value.dtype.is_floating_point()}  # type: ignore[union-attr]
    halves = {name for name, dtype in stored.items() if dtype == ir.DataType.FLOAT16}
    log = run_pipeline(parse(TEXT, WEIGHTS), lowering="onnxruntime", precision="fp16").log
    assert "NarrowWeights: 3 weights are stored in float16" in log
    assert len(halves) == 3 and stored["b"] == ir.DataType.FLOAT and kept == ()
    assert count_ops(model)["Cast"] == 3  # what an embedding looks up is widened behind it
    rounded = {n: w.astype(np.float16).astype(np.float32) if w.ndim > 1 else w for n, w in WEIGHTS.items()}
    for ours, exact in zip(run(model, FEED), run(parse(TEXT, rounded), FEED), strict=True):
        np.testing.assert_array_equal(ours, exact)


def test_what_does_not_fit_stays_with_a_reason() -> None:
    large = {**WEIGHTS, "W": WEIGHTS["W"] * np.float32(1e6)}
    model, kept = lower(large)
    assert model.graph.initializers["W"].dtype == ir.DataType.FLOAT
    assert [entry.split(" holds")[0] for entry in kept] == ["first: constant 'W'"]
    tiny = {**WEIGHTS, "K": WEIGHTS["K"] * np.float32(1e-6)}
    assert lower(tiny)[0].graph.initializers["K"].dtype == ir.DataType.FLOAT


def test_what_is_stored_narrow_stays_as_it_is() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[B,24] x) => (float[B,32] y) {
        w = Cast <to: int = 1> (W) y = MatMul (x, w)
    }"""
    model = parse(text)
    narrow = WEIGHTS["W"].astype(ml_dtypes.bfloat16)
    value = ir.Value(name="W", const_value=ir.tensor(narrow, name="W"), type=ir.TensorType(ir.DataType.BFLOAT16))
    (cast,) = [node for node in model.graph if node.op_type == "Cast"]
    cast.replace_input_with(0, value)
    model.graph.register_initializer(value)
    result = run_pipeline(model, lowering="onnxruntime", precision="fp16")
    (stored,) = result.model.graph.initializers.values()
    assert stored.dtype == ir.DataType.BFLOAT16


def test_small_weights_in_constants_are_stored_so_too() -> None:
    """As paddle2onnx writes them all."""
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[B,4] x) => (float[B,5] y) {
        w = Constant <value = float[4,5] {1.1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}> ()
        y = MatMul (x, w)
    }"""
    result = run_pipeline(parse(text), lowering="onnxruntime", precision="fp16")
    (stored,) = result.model.graph.initializers.values()
    assert stored.dtype == ir.DataType.FLOAT16


def test_a_weight_that_is_not_is_seen(tmp_path: Path) -> None:
    """What a build demands of such a graph, and that the float32 graph would not pass for it."""
    path = tmp_path / "m.onnx"
    ir.save(lower(WEIGHTS)[0], path)
    require_stored_weights(path, kept=(), where="m.onnx")
    ir.save(run_pipeline(parse(TEXT, WEIGHTS), lowering="onnxruntime", precision="fp32").model, path)
    require_stored_weights(path, kept=("first", "second"), where="m.onnx")
    with pytest.raises(BuildError) as caught:
        require_stored_weights(path, kept=("first",), where="m.onnx")
    assert str(caught.value) == (
        "fp16 was asked for, and a weight is stored in more\n"
        "  where:   m.onnx\n"
        "  got:     'K' of Conv 'second' is float32\n"
        "  allowed: fp16 weights, computed in fp32: so is fp16 on CPUs\n"
        "  fix:     export it again with --precision fp16; precision is written in the typed graph"
    )
