"""FlattenTokens: tokens become the rows of a matrix, the numbers stay, and what mixes tokens gets its stack back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.onnx_files import precision as shares
from engines.onnx_files.precision import measure_graph
from engines.onnx_files.read import read_onnx
from exporters.passes import run_pipeline
from exporters.passes.flatten_tokens import FlattenTokens
from exporters.passes.infer_types import InferTypes
from tests.passes_support import count_ops, differ, parse, random, run

WEIGHTS = {
    "gain": random(8), "shift": random(8, seed=1), "up": random(8, 12, seed=2), "bias": random(12, seed=3),
    "down": random(12, 8, seed=4), "half": np.array(0.5, np.float32), "heads": np.array([-1, 5, 2, 4]),
    "merged": np.array([-1, 5, 8]), "mix": random(8, 24, seed=5), "proj": random(8, 8, seed=6),
}  # fmt: skip
#: x + attention(norm(x)), then + mlp(norm(...)), then the first token.
LAYER = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,{T},8] x) => (float[B,8] first, float[B,{T},8] y) {{
    n = LayerNormalization <axis = -1, epsilon = 1e-5> (x, gain, shift)
    qkv = MatMul (n, mix)
    q, k, v = Split <axis = 2> (qkv)
    q4 = Reshape (q, heads)
    k4 = Reshape (k, heads)
    v4 = Reshape (v, heads)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    s = MatMul (qt, kt)
    p = Softmax <axis = -1> (s)
    o4 = MatMul (p, vt)
    ot = Transpose <perm = [0, 2, 1, 3]> (o4)
    o = Reshape (ot, merged)
    a = MatMul (o, proj)
    h = Add (x, a)
    m = LayerNormalization <axis = 2, epsilon = 1e-5> (h, gain, shift)
    u = MatMul (m, up)
    ub = Add (bias, u)
    t = Tanh (ub)
    w = Mul (t, half)
    d = MatMul (w, down)
    y = Add (h, d)
    zero = Constant <value = int64 {{0}}> ()
    first = Gather <axis = 1> (y, zero)
}}
"""


def make(text: str = LAYER, T: int = 5) -> tuple[ir.Model, dict[str, np.ndarray]]:
    used = {name: array for name, array in WEIGHTS.items() if f" {name}" in text or f"({name}" in text}
    model = parse(text.format(T=T), used)
    InferTypes()(model)
    return model, {"x": random(3, 5, 8, seed=9)}


def ranks(model: ir.Model, op_type: str) -> list[int]:
    InferTypes()(model)
    return [len(n.outputs[0].shape) for n in model.graph if n.op_type == op_type and n.outputs[0].shape is not None]


def test_a_layer_works_on_matrices() -> None:
    model, feed = make()
    before = run(model, feed)
    assert FlattenTokens()(model).modified
    assert (
        ranks(model, "LayerNormalization") == [2, 2]
        and ranks(model, "Tanh") == [2]
        and ranks(model, "Add")[1:] == [2, 2]
    )
    assert ranks(model, "MatMul") == [2, 4, 4, 2, 2, 2]
    assert count_ops(model)["Reshape"] == 4 + 2  # heads and their merge; into the region, and out of it
    assert differ(before, run(model, feed)) < 2e-6
    assert [output.name for output in model.graph.outputs] == ["first", "y"]


PART = '<ir_version: 8, opset_import: ["": 17]> g (float[B,{T},8] x) => (float[B,{T},8] y) {{ %s }}'


@pytest.mark.parametrize(
    "body",
    [
        "n = LayerNormalization <axis = -1> (x, gain, shift) y = Softmax <axis = 1> (n)",  # mixes tokens
        "n = LayerNormalization <axis = -1> (x, gain, shift) y = Add (n, where)",  # a value of its own for every token
        "n = LayerNormalization <axis = -1> (x, gain, shift) y = MatMul (turn, n)",  # the other side of a product
    ],
)
def test_what_knows_tokens_apart_gets_them_stacked(body: str) -> None:
    extra = {"where": random(5, 8), "turn": random(5, 5)}
    given = {name: array for name, array in {**WEIGHTS, **extra}.items() if name in body}
    given = {name: given[name] for name in given if name in ("gain", "shift", "where", "turn")}
    model = parse((PART % body).format(T=5), given)
    InferTypes()(model)
    feed = {"x": random(3, 5, 8, seed=9)}
    before = run(model, feed)
    assert FlattenTokens()(model).modified
    assert ranks(model, "LayerNormalization") == [2] and count_ops(model)["Reshape"] == 2
    assert differ(before, run(model, feed)) < 2e-6


def test_a_quantised_matrix_is_one_too() -> None:
    body = "n = LayerNormalization <axis = -1> (x, gain, shift) w = DequantizeLinear (steps, size) y = MatMul (n, w)"
    steps = np.random.default_rng(0).integers(-127, 128, (8, 8)).astype(np.int8)
    given = {"gain": WEIGHTS["gain"], "shift": WEIGHTS["shift"], "steps": steps, "size": np.array(0.01, np.float32)}
    model = parse((PART % body).format(T=5), given)
    InferTypes()(model)
    feed = {"x": random(3, 5, 8, seed=9)}
    before = run(model, feed)
    assert FlattenTokens()(model).modified
    assert ranks(model, "MatMul") == [2]
    assert differ(before, run(model, feed)) < 2e-6


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ("y = LayerNormalization <axis = -1> (x, gain, shift)", "T"),  # how many tokens is not known
        ("y = LayerNormalization <axis = 1> (x, wide, wide)", "5"),  # over tokens too
        ("u = MatMul (x, up) v = MatMul (u, down) y = Tanh (v)", "5"),  # no norm, no region
    ],
)
def test_near_misses_stay(body: str, tokens: str) -> None:
    given = {
        name: array
        for name, array in {**WEIGHTS, "wide": random(5, 8)}.items()
        if f"{name})" in body or f"{name}," in body
    }
    model = parse((PART % body).format(T=tokens), given)
    InferTypes()(model)
    assert not FlattenTokens()(model).modified


def test_rows_in_the_wrong_order_are_found_out() -> None:
    """The mutant: stacked again by another number of tokens."""
    model, feed = make()
    before = run(model, feed)
    FlattenTokens()(model)
    (back,) = [node for node in model.graph if node.name and node.name.endswith("to_tokens")]
    turned = ir.node("Transpose", [back.inputs[0]], attributes={"perm": [1, 0]})
    model.graph.insert_before(back, turned)
    back.replace_input_with(0, turned.outputs[0])
    assert differ(before, run(model, feed)) > 0.1


def test_an_output_whose_sizes_are_declared_open_is_left_stacked() -> None:
    """Torch's old exporter gives every size of an output a name of its own, also where the input's is fixed."""
    model, feed = make(LAYER.replace("float[B,{T},8] y", "float[B,S,W] y"))
    before = run(model, feed)
    assert FlattenTokens()(model).modified
    InferTypes()(model)
    assert ranks(model, "LayerNormalization") == [2, 2]
    assert differ(before, run(model, feed)) < 2e-6


@pytest.mark.parametrize(("lowering", "flat"), [("tensorrt-8", 2), ("tensorrt-10", 3), ("onnxruntime", 3)])
def test_only_tensorrt_8_flattens(lowering: str, flat: int) -> None:
    model, feed = make()
    for precision, allowed in (("fp32", 2e-6), ("fp16", 1e-2)):
        lowered = run_pipeline(model, lowering=lowering, precision=precision).model
        assert ranks(lowered, "LayerNormalization") == [flat, flat]
        assert differ(run(model, feed), run(lowered, feed)) < allowed


def test_the_rows_of_a_matrix_count_where_there_is_no_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that builds has no onnx package: an INT8 graph was refused there, its products counted as of one row."""
    model, _ = make()
    lowered = run_pipeline(model, lowering="tensorrt-8", precision="fp32").model
    ir.save(lowered, tmp_path / "m.onnx")
    _, inferred = measure_graph(read_onnx(tmp_path / "m.onnx"), {"B": 6})
    monkeypatch.setattr(shares, "_flatten", lambda model, sizes: model)
    _, followed = measure_graph(read_onnx(tmp_path / "m.onnx"), {"B": 6})
    monkeypatch.setattr(shares._Types, "follow_rows", lambda types, sizes: None)
    _, of_one_row = measure_graph(read_onnx(tmp_path / "m.onnx"), {"B": 6})
    heads = (
        6 * 2 * 2 * 5 * 5 * 4 + 6 * 5 * 8 * 8
    )  # their batch is a -1 here, which nothing follows, and so is what merges them
    assert inferred - heads * 5 // 6 == followed > 5 * of_one_row
