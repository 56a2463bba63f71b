"""INT8 by rows: when it is chosen and when not, its numbers against float64, and that a wrong scale would be seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import Decided, Range, run_pipeline
from exporters.passes.int8 import insert_dynamic_quantization, insert_quantize_dequantize
from tests.passes_support import count_ops, differ, parse, random, run

LOWERINGS = ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"]
NORMED = """<ir_version: 10, opset_import: ["": 18]> g (float[B,64] x) => (float[B,96] y) {
    n = LayerNormalization <epsilon: float = 1e-5> (x, g, b)
    [product] p = MatMul (n, W) y = Add (p, c)
}"""
PLAIN = """<ir_version: 10, opset_import: ["": 18]> g (float[B,64] x) => (float[B,96] y) {
    h = Relu (x) m = Neg (h) [product] p = MatMul (m, W) y = Add (p, c)
}"""
GEMM = """<ir_version: 10, opset_import: ["": 18]> g (float[B,64] x) => (float[B,96] y) {
    h = Relu (x) [product] y = Gemm <BETA transB: int = 1> (h, W, c)
}"""
LOUD = np.where(np.arange(64) % 16 == 3, 20, 1).astype(np.float32)
WEIGHTS = {
    "g": LOUD,
    "b": random(64, seed=1, scale=0.1),
    "W": random(64, 96, seed=2, scale=0.1) / LOUD[:, None],
    "c": random(96, seed=3),
}
#: Tokens of very different size, as behind an activation of a trained transformer.
SIZES = np.exp2(np.arange(128) % 9 - 4).astype(np.float32)[:, None]
FEED = {"x": random(128, 64, seed=4) * SIZES}


def normalise(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    scaled = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    normalised: np.ndarray = scaled * WEIGHTS["g"] + WEIGHTS["b"]
    return normalised


def compute_exactly(text: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The name and the values of the product's input, and the graph's output without its bias, in float64."""
    if text is NORMED:
        name, rows = "n", normalise(FEED["x"])
    else:
        name, rows = ("h", np.maximum(FEED["x"], 0.0)) if text.count("Gemm") else ("m", -np.maximum(FEED["x"], 0.0))
    return name, rows, rows.astype(np.float64) @ WEIGHTS["W"].astype(np.float64)


def lower(text: str, lowering: str, ranges: dict[str, Range], **options: Any) -> tuple[ir.Model, str]:
    weights = {**WEIGHTS, "W": WEIGHTS["W"].T.copy()} if "transB" in text else WEIGHTS
    used = {name: array for name, array in weights.items() if f"{name})" in text or f"{name}," in text}
    result = run_pipeline(parse(text, used), lowering=lowering, precision="int8", ranges=ranges, **options)
    return result.model, next(line for line in result.log if "'product' is int8" in line)


def calibrate(name: str, rows: np.ndarray) -> dict[str, Range]:
    return {name: Range(float(rows.min()), float(rows.max()), rows.astype(np.float32), seen=len(rows))}


def measure_rows(model: ir.Model, exact: np.ndarray, bias: float = 1.0) -> np.ndarray:
    """|y' - y| / |y| of every row, the bias taken off."""
    off = run(model, FEED)[0].astype(np.float64) - bias * WEIGHTS["c"] - exact
    found: np.ndarray = np.linalg.norm(off, axis=1) / np.maximum(np.linalg.norm(exact, axis=1), 1e-12)
    return found


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("text", [PLAIN, GEMM.replace("BETA", "")])
def test_rows_of_every_size_keep_their_bits(text: str, lowering: str) -> None:
    name, rows, exact = compute_exactly(text)
    model, line = lower(text, lowering, calibrate(name, rows))
    assert "is int8 by rows (error" in line
    assert count_ops(model)["Div"] == 1
    errors = measure_rows(model, exact)
    # the bias, as large as a loud row, is rounded to float16 on the newer ones: quiet rows see that, too
    assert np.median(errors) < 0.02 and errors[SIZES[:, 0] >= 1].max() < 0.03
    by_tensor, _ = lower(text, "tensorrt-8", {name: Range(float(rows.min()), float(rows.max()))})
    assert measure_rows(by_tensor, exact).max() > 0.2, "the case is a hard one"


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_loud_channels_move_into_the_weights(lowering: str) -> None:
    name, rows, exact = compute_exactly(NORMED)
    model, line = lower(NORMED, lowering, calibrate(name, rows))
    assert "is int8 by rows, smoothed (error" in line
    assert np.median(measure_rows(model, exact)) < 0.012
    plain, line = lower(NORMED, "onnxruntime", {})
    assert line.endswith("is int8 by rows")
    assert np.median(measure_rows(plain, exact)) > 0.016, "the case is a hard one"


@pytest.mark.parametrize(
    ("text", "rows", "said"),
    [
        (PLAIN, random(128, 64), "is int8 by tensor (error"),  # rows alike: a static range is free
        (PLAIN, None, "is int8 by tensor"),  # nothing to try it on
        (PLAIN, random(63, 64), "is int8 by rows (error"),  # too few rows to know a range by
        (PLAIN, random(128, 64) * LOUD * SIZES, "is int8 by rows (error"),  # loud, but no norm makes it
        (GEMM.replace("BETA", "beta: float = 0.5,"), random(128, 64) * SIZES, "is int8 by tensor"),
    ],
)  # fmt: skip
def test_what_is_chosen(text: str, rows: np.ndarray | None, said: str) -> None:
    name = "h" if text is not PLAIN else "m"
    span = Range(-4, 4) if rows is None else Range(float(rows.min()), float(rows.max()), rows, seen=len(rows))
    _, line = lower(text, "tensorrt-8", {name: span})
    assert said in line and "smoothed" not in line.split(";")[0]


GATED = """<ir_version: 10, opset_import: ["": 20]> g (float[B,512] x) => (float[B,96] y) {
    ACTIVATION [product] p = MatMul (h, W) y = Add (p, c)
}"""
ACTIVATIONS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], bool]] = {
    "relu": ("h = Relu (x)", lambda x: np.maximum(x, 0), True),
    "gelu": ("h = Gelu (x)", lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))), True),
    "tanh gelu": (
        'h = Gelu <approximate: string = "tanh"> (x)',
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        True,
    ),
    "silu": ("s = Sigmoid (x) h = Mul (s, x)", lambda x: x / (1 + np.exp(-x)), True),
    "another gate": ("n = Neg (x) s = Sigmoid (n) h = Mul (s, x)", lambda x: x / (1 + np.exp(x)), False),
    "elu": ("h = Elu (x)", lambda x: np.where(x > 0, x, np.expm1(x)), False),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("loud", [False, True])
def test_behind_an_activation(name: str, loud: bool) -> None:
    """What it is never below is used; and channels that are loud in single rows are split off."""
    code, compute, bounded = ACTIVATIONS[name]
    x = random(128, 512, seed=7)
    if loud:
        x[::16, [30, 300]] = 60 if name != "another gate" else -60
    weights = {"W": random(512, 96, seed=8, scale=0.05), "c": random(96, seed=9)}
    rows = compute(x.astype(np.float64))
    exact = rows @ weights["W"].astype(np.float64) + weights["c"]
    for lowering in ("onnxruntime", "tensorrt-10"):
        result = run_pipeline(
            parse(GATED.replace("ACTIVATION", code), weights),
            lowering=lowering,
            precision="int8",
            ranges=calibrate("h", rows),
        )
        line = next(line for line in result.log if "'product' is int8" in line)
        counts = count_ops(result.model)
        assert counts["ReduceMin"] == (0 if lowering == "onnxruntime" and bounded else counts["ReduceMax"])
        assert ("split off (error" in line) == loud and counts["Gather"] == loud
        off = run(result.model, {"x": x})[0] - exact
        assert np.linalg.norm(off, axis=1).max() < 0.025 * np.median(np.linalg.norm(exact, axis=1))


def test_graphs_that_share_a_weight_smooth_it_alike() -> None:
    name, rows, exact = compute_exactly(NORMED)
    decided: Decided = {}
    stored = []
    for lowering, sample in (("tensorrt-10", rows), ("tensorrt-11", random(128, 64)), ("onnxruntime", rows)):
        model, line = lower(NORMED, lowering, calibrate(name, sample), decided=decided)
        assert "by rows, smoothed" in line
        assert np.median(measure_rows(model, exact)) < 0.012
        int8 = next(value for name, value in model.graph.initializers.items() if name.endswith("/int8"))
        assert int8.const_value is not None
        stored.append(int8.const_value.numpy())
    assert all(np.array_equal(stored[0], other) for other in stored[1:])
    _, line = lower(NORMED, "onnxruntime", calibrate(name, rows), decided={"W": None})
    assert "smoothed" not in line, "the first graph stored it as it is"


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    model, _ = lower(PLAIN, "onnxruntime", {})
    (together,) = run(model, FEED)
    alone = np.concatenate([run(model, {"x": FEED["x"][row : row + 1]})[0] for row in range(0, 128, 17)])
    np.testing.assert_array_equal(together[::17], alone)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_rows_of_zeros_stay_zeros(lowering: str) -> None:
    name, rows, _ = compute_exactly(PLAIN)
    model, _ = lower(PLAIN, lowering, calibrate(name, rows))
    (out,) = run(model, {"x": np.zeros((2, 64), np.float32)})
    np.testing.assert_allclose(out, np.tile(WEIGHTS["c"], (2, 1)), rtol=1e-3)


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize(("lowering", "least"), [("onnxruntime", 10), ("tensorrt-8", 13)])
def test_older_files_are_taken(opset: int, lowering: str, least: int) -> None:
    """QuantizeLinear is of opset 10, its axis of 13, and reductions had their axes as an attribute."""
    name, rows, exact = compute_exactly(PLAIN)
    ranges = {} if lowering == "onnxruntime" else calibrate(name, rows)
    model, _ = lower(PLAIN.replace('"": 18', f'"": {opset}'), lowering, ranges)
    assert model.opset_imports[""] == max(opset, least)
    assert np.median(measure_rows(model, exact)) < 0.02


Change = Callable[[Any], Any]
MUTANTS: dict[str, tuple[str, Change]] = {
    "the size of a row is off by sqrt 2": (
        "divide_rows",
        lambda right: lambda build, value, **options: _scale_rows(build, *right(build, value, **options)),
    ),
    "the weight is not smoothed": ("scale_rows", lambda right: lambda tensor, factor, axis: tensor),
}


def _scale_rows(build: Any, quotient: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    factor = build.constant(np.float32(2**0.5))
    return quotient, build("Mul", rows, factor, dtype=ir.DataType.FLOAT, shape=rows.shape)


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-10"])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_seen(name: str, lowering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = insert_dynamic_quantization if lowering == "onnxruntime" else insert_quantize_dequantize
    attribute, change = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, change(getattr(owner, attribute)))
    tensor, rows, exact = compute_exactly(NORMED)
    model, _ = lower(NORMED, lowering, calibrate(tensor, rows))
    assert np.median(measure_rows(model, exact)) > 0.3


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_product_may_read_a_product(lowering: str, shared: bool) -> None:
    """Rewriting the first gives what it made to the second under another value, with nothing between them."""
    second = "W" if shared else "V"
    model = parse(
        f"""<ir_version: 10, opset_import: ["": 18]> g (float[B, 64] x) => (float[B, 64] y) {{
            a = MatMul (x, W) b = MatMul (a, {second}) c = MatMul (b, U) y = Relu (c) }}""",
        {"W": random(64, 64, seed=1, scale=0.1), "U": random(64, 64, seed=3, scale=0.1)}
        | ({} if shared else {"V": random(64, 64, seed=2, scale=0.1)}),
    )
    ranges = {name: Range(-4.0, 4.0, rows=random(80, 64, seed=7), seen=80) for name in ("x", "a", "b")}
    result = run_pipeline(model, lowering=lowering, precision="int8", ranges=ranges)
    assert sum("is int8 by " in line for line in result.log) == 3
    feed = {"x": random(4, 64, seed=5)}
    assert differ(run(model, feed), run(result.model, feed)) < 0.12
