"""The small rewrites (transposed weights, GELU, types) and what every pipeline promises."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters.passes import PIPELINES, run_pipeline
from exporters.passes.fold_transposed_weights import FoldTransposedWeights
from exporters.passes.fuse_gelu import FuseGelu
from exporters.passes.infer_types import InferTypes
from exporters.passes.inline_functions import InlineFunctions
from exporters.passes.shared.graph import notes_of
from specs.errors import GraphError, TargetError
from tests.passes_support import count_ops, differ, parse, random, run

HEADER = '<ir_version: 10, opset_import: ["": 18]>'


def test_shared_transposed_weights_are_folded_once() -> None:
    text = f"""{HEADER} g (float[2,8] x) => (float y, float z) {{
        a = Transpose <perm = [1, 0]> (W) y = MatMul (x, a)
        b = Transpose <perm = [1, 0]> (W) z = MatMul (x, b)
    }}"""
    model, feed = parse(text, {"W": random(4, 8)}), {"x": random(2, 8, seed=1)}
    before = run(model, feed)
    assert FoldTransposedWeights()(model).modified
    assert list(model.graph.initializers) == ["W/transposed"]
    assert isinstance(model.graph.initializers["W/transposed"].const_value, ir.LazyTensor)
    assert differ(before, run(model, feed)) == 0


def test_every_permutation_is_its_own_tensor() -> None:
    text = f"""{HEADER} g (float[2,3,4] x) => (float u, float v, float w) {{
        a = Transpose <perm = [1, 0, 2]> (W) u = Add (x, a)
        b = Transpose <perm = [0, 2, 1]> (V) v = MatMul (x, b)
        c = Transpose (W) d = Transpose <perm = [2, 1, 0]> (W) e = Sub (c, d) w = Identity (c)
    }}"""
    model = parse(text, {"W": random(3, 2, 4), "V": random(2, 5, 4, seed=1)})
    feed = {"x": random(2, 3, 4, seed=2)}
    before = run(model, feed)
    assert FoldTransposedWeights()(model).modified
    assert "Transpose" not in count_ops(model)
    assert model.graph.initializers["W/transposed"].shape == ir.Shape([2, 3, 4])
    assert differ(before, run(model, feed)) == 0


def test_a_transposed_weight_that_is_an_output_stays() -> None:
    model = parse(
        f"{HEADER} g (float[2] x) => (float y, float[2] z) {{ y = Transpose (W) z = Neg (x) }}", {"W": random(4, 8)}
    )
    feed = {"x": random(2)}
    before = run(model, feed)
    FoldTransposedWeights()(model)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert differ(before, run(model, feed)) == 0


def test_a_transposed_input_is_not_a_weight() -> None:
    model = parse(f"{HEADER} g (float[4,8] w, float[2,8] x) => (float y) {{ t = Transpose (w) y = MatMul (x, t) }}")
    assert not FoldTransposedWeights()(model).modified


def test_an_initializer_that_a_caller_may_override_is_not_a_constant() -> None:
    text = f"{HEADER} g (float[2,8] x, float[4,8] W) => (float y) {{ t = Transpose (W) y = MatMul (x, t) }}"
    model = parse(text, {"W": random(4, 8)})
    assert not FoldTransposedWeights()(model).modified


GELU = """{header} g (float[2,64] x) => (float y) {{
    root = Constant <value = float {{1.4142135381698608}}> ()
    one = Constant <value = float {{1.0}}> ()
    half = Constant <value = float {{{half}}}> ()
    a = Div (x, root) b = Erf (a) c = Add (b, one) {tail}
}}"""


TAILS = ["d = Mul (half, c) y = Mul (x, d)", "d = Mul (x, c) y = Mul (d, half)", "d = Mul (x, half) y = Mul (d, c)"]


@pytest.mark.parametrize("tail", TAILS)
def test_every_order_of_gelu_is_found(tail: str) -> None:
    model = parse(GELU.format(header=HEADER, half=0.5, tail=tail))
    feed = {"x": random(2, 64, scale=3)}
    fused = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    assert count_ops(fused) == {"Gelu": 1}
    assert differ(run(model, feed), run(fused, feed)) < 1e-6
    fused.graph[0].attributes["approximate"] = ir.AttrString("approximate", "tanh")
    assert differ(run(model, feed), run(fused, feed)) > 1e-5  # the exact and the tanh GELU are told apart


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("wrong", [("half", 0.5005), ("root", 1.4135), ("one", 1.0005)])
def test_another_factor_is_no_gelu(wrong: tuple[str, float], tail: str) -> None:
    model = parse(GELU.format(header=HEADER, half=0.5, tail=tail))
    name, factor = wrong
    (node,) = [node for node in model.graph if node.outputs[0].name == name]
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float32(factor)))
    assert not FuseGelu()(model).modified


def test_gelu_of_another_value_is_no_gelu() -> None:
    text = GELU.format(header=HEADER, half=0.5, tail="d = Mul (half, c) z = Neg (x) y = Mul (z, d)")
    assert not FuseGelu()(parse(text)).modified


TANH_GELU = """{header} g (float[2,64] x) => (float y) {{
    root = Constant <value = float {{0.7978845834732056}}> ()
    third = Constant <value = float {{0.044714998453855515}}> ()
    one = Constant <value = float {{1.0}}> ()
    half = Constant <value = float {{0.5}}> ()
    three = Constant <value = float {{3.0}}> ()
    {cube} k = Mul (third, cube) s = Add (x, k) a = Mul (root, s) b = Tanh (a) c = Add (b, one) {tail}
}}"""
CUBES = ["cube = Pow (x, three)", "square = Mul (x, x) cube = Mul (square, x)"]


@pytest.mark.parametrize("cube", CUBES)
@pytest.mark.parametrize("tail", TAILS)
def test_every_order_of_the_tanh_gelu_is_found(cube: str, tail: str) -> None:
    model = parse(TANH_GELU.format(header=HEADER, cube=cube, tail=tail))
    feed = {"x": random(2, 64, scale=3)}
    fused = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    assert count_ops(fused) == {"Gelu": 1}
    assert differ(run(model, feed), run(fused, feed)) < 1e-6
    fused.graph[0].attributes["approximate"] = ir.AttrString("approximate", "none")
    assert differ(run(model, feed), run(fused, feed)) > 1e-5  # the tanh and the exact GELU are told apart


@pytest.mark.parametrize(
    "wrong", [("half", 0.5005), ("root", 0.7983), ("one", 1.0005), ("third", 0.0448), ("three", 2)]
)
def test_another_factor_is_no_tanh_gelu(wrong: tuple[str, float]) -> None:
    model = parse(TANH_GELU.format(header=HEADER, cube=CUBES[0], tail=TAILS[0]))
    name, factor = wrong
    (node,) = [node for node in model.graph if node.outputs[0].name == name]
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float32(factor)))
    assert not FuseGelu()(model).modified


def test_tanh_gelu_of_another_value_is_no_gelu() -> None:
    for cube in ("z = Neg (x) cube = Pow (z, three)", "square = Mul (x, x) z = Neg (x) cube = Mul (square, z)"):
        assert not FuseGelu()(parse(TANH_GELU.format(header=HEADER, cube=cube, tail=TAILS[0]))).modified


@pytest.mark.parametrize(
    "bounds", ["start: int = 1", "start: int = -2", "end: int = -1", "start: int = 1, end: int = 3"]
)
def test_sizes_are_cut_out_as_shape_does(bounds: str) -> None:
    """TensorRT 8 ignores both attributes."""
    model = parse(f"{HEADER} g (float[A,B,C,D] x) => (int64[N] y) {{ y = Shape <{bounds}> (x) }}")
    lowered = run_pipeline(model, lowering="tensorrt-8", precision="fp32").model
    assert count_ops(lowered) == {"Shape": 1, "Slice": 1}
    feed = {"x": random(2, 3, 5, 7)}
    assert run(model, feed)[0].tolist() == run(lowered, feed)[0].tolist()


def test_types_are_found_behind_an_unknown_operator() -> None:
    text = '<ir_version: 10, opset_import: ["": 18, "other": 1]> g (float[2] x) => (float y) { a = other.Thing (x) b = Relu (x) y = Add (a, b) }'  # noqa: E501
    model = parse(text)
    InferTypes()(model)
    types = {node.op_type: node.outputs[0].type for node in model.graph}
    assert types["Thing"] is None
    assert types["Relu"] == ir.TensorType(ir.DataType.FLOAT)


def test_sequences_keep_their_type() -> None:
    text = f"{HEADER} g (float[2] x) => (float y) {{ s = SequenceConstruct (x, x) y = ConcatFromSequence <axis: int = 0> (s) }}"  # noqa: E501
    model = parse(text)
    InferTypes()(model)
    assert isinstance(model.graph[0].outputs[0].type, ir.SequenceType)
    assert run_pipeline(model, lowering="tensorrt-11", precision="fp16").keep_fp32 != ()


def test_functions_are_inlined_and_outputs_keep_their_names() -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "local": 1]>
    g (float[2] x) => (float[2] y, float[2] same) { y = local.Twice (x) same = local.Pass (x) }
    <domain: "local", opset_import: ["": 18]> Twice (a) => (r) { r = Add (a, a) }
    <domain: "local", opset_import: ["": 18]> Pass (a) => (r) { r = Identity (a) }
    """
    model, feed = parse(text), {"x": random(2)}
    before = run(model, feed)
    assert InlineFunctions()(model).modified
    assert [value.name for value in model.graph.outputs] == ["y", "same"]
    assert differ(before, run(model, feed)) == 0


def test_a_custom_op_without_its_body_is_refused() -> None:
    text = f"{HEADER.replace('18]', '18, {chr(34)}metagen{chr(34)}: 1]') if False else HEADER}"
    text = '<ir_version: 10, opset_import: ["": 18, "metagen": 1]> g (float[2] x) => (float[2] y) { [odd] y = metagen.MetagenThing (x) }'  # noqa: E501
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(GraphError, match="metagen::MetagenThing 'odd' has no function body in this model"):
        run_pipeline(model, lowering="tensorrt-8", precision="fp32")


def test_which_pairs_exist() -> None:
    assert sorted(PIPELINES) == sorted(
        (lowering, precision)
        for lowering in ("onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11")
        for precision in ("fp32", "fp16", "bf16", "int8")
        if not (precision == "bf16" and lowering in ("onnxruntime", "tensorrt-8"))
    )


def test_a_pair_that_does_not_exist() -> None:
    model = parse(f"{HEADER} g (float[2] x) => (float[2] y) {{ y = Relu (x) }}")
    with pytest.raises(TargetError) as caught:
        run_pipeline(model, lowering="tensorrt-8", precision="bf16")
    assert str(caught.value).splitlines()[:2] == ["tensorrt-8 has no bf16", "  allowed: fp32, fp16, int8"]
    with pytest.raises(TargetError, match="did you mean 'tensorrt-11'"):
        run_pipeline(model, lowering="tensorrt-1", precision="fp32")


def test_notes_belong_to_one_run() -> None:
    model = parse(f"{HEADER} g (float[2] x) => (float[2] y) {{ [n] y = Exp (x) }}")
    for _ in range(2):
        assert len(run_pipeline(model, lowering="tensorrt-10", precision="fp16").keep_fp32) == 1
    assert notes_of(model).log == []


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"])
def test_modified_is_the_truth(lowering: str) -> None:
    """A second run over its own result changes nothing but what inference finds."""
    model = parse(f"{HEADER} g (float[2,4] x) => (float[2,4] y) {{ y = MatMul (x, W) }}", {"W": random(4, 4)})
    once = run_pipeline(model, lowering=lowering, precision="fp32").model
    for step in PIPELINES[lowering, "fp32"]:
        assert not step(once).modified, step
    assert np.array_equal(run(once, {"x": random(2, 4)})[0], run(model, {"x": random(2, 4)})[0])
