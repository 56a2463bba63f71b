"""LowerAttention and LowerCachedAttention: they fire, they refuse with a reason, and the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from exporters.passes.lower_attention import LowerAttention
from exporters.passes.lower_cached_attention import LowerCachedAttention
from exporters.passes.shared.graph import notes_of
from tests.passes_support import count_ops, differ, parse, random, run

# bias is [2, 1, 5, 7] where it is used
ATTENTION = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[2,4,5,16] q, float[2,2,7,16] k, float[2,2,7,16] v{bias_input}) => (float[2,4,5,16] y) {{
    [attend] y = metagen.MetagenAttention
        <scale: float = 0.3, causal: int = {causal}, window: int = {window}, groups: int = 2> (q, k, v{bias})
}}
"""
FOLDABLE = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[2,5,64] x, float[2,7,32] c) => (float[2,5,64] y) {
    four = Constant <value = int64[4] {2, 5, 4, 16}> ()
    two = Constant <value = int64[4] {2, 7, 2, 16}> ()
    flat = Constant <value = int64[3] {2, 5, 64}> ()
    q4 = Reshape (x, four)
    k4 = Reshape (c, two)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    k = Transpose <perm = [0, 2, 1, 3]> (k4)
    o = metagen.MetagenAttention <scale: float = 0.25, causal: int = 0, window: int = 0, groups: int = 2> (q, k, k)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    y = Reshape (t, flat)
}
"""
CACHED = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[2,4,T,16] q, float[2,2,T,16] k, float[2,2,T,16] v, float[2,2,S,16] pk, float[2,2,S,16] pv, int64[2] start)
    => (float[2,4,T,16] y, float[2,2,S,16] nk, float[2,2,S,16] nv) {
    [attend] y, nk, nv = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 2> (q, k, v, pk, pv, start)
}
"""


def make_attention(causal: int, window: int, *, bias: bool) -> tuple[ir.Model, dict[str, np.ndarray]]:
    text = ATTENTION.format(
        causal=causal, window=window, bias=", bias" if bias else "", bias_input=", float[2,1,5,7] bias" if bias else ""
    )
    feed = {"q": random(2, 4, 5, 16), "k": random(2, 2, 7, 16, seed=1), "v": random(2, 2, 7, 16, seed=2)}
    if bias:
        feed["bias"] = random(2, 1, 5, 7, seed=3)
    return parse(text), feed


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(0, 0), (1, 0), (0, 3), (1, 2)])
@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8", "tensorrt-10"])
def test_lowered_attention_equals_its_body(lowering: str, causal: int, window: int, bias: bool) -> None:
    model, feed = make_attention(causal, window, bias=bias)
    lowered = run_pipeline(model, lowering=lowering, precision="fp32").model
    assert differ(run(model, feed), run(lowered, feed)) < 2e-6
    assert ("Attention" in count_ops(lowered)) == (lowering == "onnxruntime")
    assert all(node.domain == "" for node in lowered.graph.all_nodes())


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8"])
def test_a_query_that_sees_nothing_is_uniform(lowering: str) -> None:
    """More queries than keys, and a window of 2: the last ones see none. The answer is the mean of all values."""
    text = ATTENTION.format(causal=1, window=2, bias="", bias_input="").replace("2,4,5,16", "2,4,12,16")
    feed = {"q": random(2, 4, 12, 16), "k": random(2, 2, 7, 16, seed=1) * 50, "v": random(2, 2, 7, 16, seed=2)}
    lowered = run_pipeline(parse(text), lowering=lowering, precision="fp32").model
    (out,) = run(lowered, feed)
    assert np.abs(out[:, ::2, -1] - feed["v"].mean(axis=2)).max() < 1e-6
    assert differ(run(parse(text), feed), [out]) < 2e-5


def test_a_bias_and_a_causal_mask_are_one_operand() -> None:
    model, _ = make_attention(1, 0, bias=True)
    lowered = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    (node,) = [node for node in lowered.graph if node.op_type == "Attention"]
    assert "is_causal" not in node.attributes and len(node.inputs) == 4


def test_a_wrong_scale_would_be_seen() -> None:
    model, feed = make_attention(1, 0, bias=False)
    lowered = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    node = next(node for node in lowered.graph if node.op_type == "Attention")
    node.attributes["scale"] = ir.AttrFloat32("scale", 0.3 * 2**0.5)
    assert differ(run(model, feed), run(lowered, feed)) > 1e-3


def test_a_dropped_mask_would_be_seen() -> None:
    model, feed = make_attention(1, 0, bias=False)
    lowered = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    next(node for node in lowered.graph if node.op_type == "Attention").attributes.pop("is_causal")
    assert differ(run(model, feed), run(lowered, feed)) > 1e-3


def test_node_and_output_keep_their_names() -> None:
    model, _ = make_attention(0, 0, bias=False)
    next(iter(model.graph)).metadata_props["metagen.module"] = "layers.0.attention"
    lowered = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    (node,) = [node for node in lowered.graph if node.op_type == "Attention"]
    assert (node.name, node.outputs[0].name) == ("attend", "y")
    assert node.metadata_props["metagen.module"] == "layers.0.attention"


def test_head_transposes_are_folded_away() -> None:
    model = parse(FOLDABLE)
    feed = {"x": random(2, 5, 64), "c": random(2, 7, 32, seed=1)}
    lowered = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    assert count_ops(lowered) == {"Attention": 1}
    assert differ(run(model, feed), run(lowered, feed)) < 2e-6


def test_another_transpose_is_not_folded() -> None:
    model = parse(
        FOLDABLE.replace("t = Transpose <perm = [0, 2, 1, 3]> (o)", "t = Transpose <perm = [0, 1, 2, 3]> (o)")
    )
    feed = {"x": random(2, 5, 64), "c": random(2, 7, 32, seed=1)}
    lowered = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    assert count_ops(lowered)["Transpose"] == 3
    assert differ(run(model, feed), run(lowered, feed)) < 2e-6


@pytest.mark.parametrize(("before", "after"), [("2,5,64] x", "1,10,64] x"), ("2,5,64] y", "1,10,64] y")])
def test_heads_of_another_batch_are_not_folded(before: str, after: str) -> None:
    """A Reshape that also moves tokens between batch and sequence is no splitting or merging of heads."""
    text = FOLDABLE.replace(before, after)
    model = parse(text.replace("{2, 5, 64}", "{1, 10, 64}") if after.endswith("y") else text)
    feed = {"x": random(2, 5, 64), "c": random(2, 7, 32, seed=1)}
    feed["x"] = feed["x"].reshape(1, 10, 64) if after.endswith("x") else feed["x"]
    lowered = run_pipeline(model, lowering="onnxruntime", precision="fp32").model
    assert count_ops(lowered)["Transpose"] >= 3
    assert differ(run(model, feed), run(lowered, feed)) < 2e-6


def test_another_order_of_axes_is_no_splitting_of_heads() -> None:
    text = FOLDABLE.replace("{2, 5, 4, 16}", "{2, 4, 5, 16}").replace(
        "q = Transpose <perm = [0, 2, 1, 3]>", "q = Transpose <perm = [0, 1, 2, 3]>"
    )
    feed = {"x": random(2, 5, 64), "c": random(2, 7, 32, seed=1)}
    lowered = run_pipeline(parse(text), lowering="onnxruntime", precision="fp32").model
    assert differ(run(parse(text), feed), run(lowered, feed)) < 2e-6


def test_layers_of_other_rules_or_sizes_have_masks_of_their_own() -> None:
    node = "metagen.MetagenAttention <scale: float = 0.3, causal: int = {}, window: int = {}, groups: int = 1>"
    text = f"""<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
    g (float[1,2,5,16] q, float[1,2,7,16] k, float[1,2,9,16] n)
        => (float[1,2,5,16] a, float[1,2,5,16] b, float[1,2,5,16] c, float[1,2,5,16] d) {{
        a = {node.format(1, 2)} (q, k, k) b = {node.format(0, 2)} (q, k, k)
        c = {node.format(1, 3)} (q, k, k) d = {node.format(1, 2)} (q, n, n)
    }}"""
    feed = {name: random(1, 2, size, 16, seed=size) for name, size in (("q", 5), ("k", 7), ("n", 9))}
    lowered = run_pipeline(parse(text), lowering="onnxruntime", precision="fp32").model
    assert count_ops(lowered)["Attention"] == 4
    assert differ(run(parse(text), feed), run(lowered, feed)) < 2e-6


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("float[4,5,7]", "a 3-D bias broadcasts differently in Attention"),
        ("float[2,1,N,7]", "its bias has N in place of T = 5"),
        ("float[2,1,?,7]", "its bias has "),
        ("float[7]", "its bias is not known to have 2 to 4 dimensions"),
    ],
)
def test_a_bias_of_another_form_keeps_the_body(shape: str, reason: str) -> None:
    text = ATTENTION.format(causal=0, window=0, bias=", bias", bias_input=f", {shape} bias")
    model = parse(text)
    assert not LowerAttention(fold_heads=False)(model).modified
    assert f"keeps its body: {reason}" in notes_of(model).log[0]


def test_two_unknown_sizes_are_not_taken_for_equal() -> None:
    text = ATTENTION.format(causal=0, window=0, bias=", bias", bias_input=", float[2,1,?,7] bias")
    model = parse(text.replace("float[2,4,5,16] q", "float[2,4,?,16] q"))
    assert not LowerAttention(fold_heads=False)(model).modified


def test_a_bias_that_broadcasts_keeps_the_body() -> None:
    text = ATTENTION.format(causal=0, window=0, bias=", bias", bias_input=", float[2,1,1,7] bias")
    model = parse(text)
    assert not LowerAttention(fold_heads=False)(model).modified
    assert notes_of(model).log == [
        "LowerAttention: metagen::MetagenAttention 'attend' keeps its body: its bias has 1 in place of T = 5"
    ]


def test_heads_without_a_kernel_keep_the_body() -> None:
    model, _ = make_attention(0, 0, bias=False)
    assert not LowerAttention(fold_heads=False, head_dims=range(32, 65))(model).modified
    assert "the target's Attention takes heads of 32 to 64 channels, not 16" in notes_of(model).log[0]


@pytest.mark.parametrize(
    ("lowering", "operator"), [("onnxruntime", "TensorScatter"), ("tensorrt-11", "ScatterElements")]
)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_cached_attention_equals_its_body(lowering: str, operator: str, steps: int, window: int) -> None:
    model = parse(CACHED.replace("groups: int = 2", f"groups: int = 2, window: int = {window}") if window else CACHED)
    feed = {
        "q": random(2, 4, steps, 16),
        "k": random(2, 2, steps, 16, seed=1),
        "v": random(2, 2, steps, 16, seed=2),
        "pk": random(2, 2, 9, 16, seed=3),
        "pv": random(2, 2, 9, 16, seed=4),
        "start": np.array([2, 5]),
    }
    precision = "fp32" if lowering == "onnxruntime" else "fp16"
    lowered = run_pipeline(model, lowering=lowering, precision=precision).model
    assert {operator: 2, "Attention": 1}.items() <= count_ops(lowered).items()
    assert differ(run(model, feed), run(lowered, feed)) < (2e-6 if precision == "fp32" else 5e-3)
    assert [value.name for value in lowered.graph.outputs] == ["y", "nk", "nv"]


def test_windows_do_not_share_a_mask() -> None:
    full, near = "(q, k, v, pk, pv, start)", "<scale: float = 0.25, groups: int = 2, window: int = 2>"
    text = CACHED.replace("=> (float[2,4,T,16] y,", "=> (float[2,4,T,16] z, float[2,4,T,16] y,").replace(
        "    [attend]", f"    z, a, b = metagen.MetagenCachedAttention {near} {full}\n    [attend]"
    )
    lowered = run_pipeline(parse(text), lowering="onnxruntime", precision="fp32").model
    assert (count_ops(lowered)["Attention"], count_ops(lowered)["Where"]) == (2, 2)


def test_capped_scores_keep_their_bodies() -> None:
    model = parse(CACHED.replace("groups: int = 2", "groups: int = 2, softcap: float = 30.0"))
    assert not LowerCachedAttention(scatter_elements=False)(model).modified
    assert "its scores are capped" in notes_of(model).log[0]


def test_a_cache_of_unknown_rank_keeps_the_body() -> None:
    model = parse(CACHED)
    model.graph.inputs[3].shape = None
    assert not LowerCachedAttention(scatter_elements=False)(model).modified
    assert "the shapes of q, k, v and the cache are not known to be 4-D" in notes_of(model).log[0]


def test_layers_share_one_mask() -> None:
    text = CACHED.replace("=> (float[2,4,T,16] y,", "=> (float[2,4,T,16] z, float[2,4,T,16] y,").replace(
        "    [attend]",
        "    z, a, b = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 2> (q, k, v, pk, pv, start)\n"
        "    [attend]",
    )
    lowered = run_pipeline(parse(text), lowering="onnxruntime", precision="fp32").model
    assert count_ops(lowered)["Attention"] == 2
    assert count_ops(lowered)["Where"] == 1


def test_heads_without_a_kernel_keep_the_cached_body() -> None:
    model = parse(CACHED)
    assert not LowerCachedAttention(scatter_elements=False, head_dims=range(32, 65))(model).modified
    assert "the target's Attention takes heads of 32 to 64 channels, not 16" in notes_of(model).log[0]


@pytest.mark.parametrize(("lowering", "precision"), [("onnxruntime", "fp32"), ("tensorrt-11", "fp16")])
def test_layers_of_other_lengths_or_capacities_share_nothing(lowering: str, precision: str) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 18, "metagen": 1]>
    g (float[2,2,T,16] q, float[2,2,T,16] k, float[2,2,S,16] pk, float[2,2,U,16] longer, int64[2] start, int64[2] later)
        => (float[2,2,T,16] x, float[2,2,T,16] y, float[2,2,T,16] z) {
        x, a, b = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 1> (q, k, k, pk, pk, start)
        y, c, d = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 1> (q, k, k, pk, pk, later)
        z, e, f = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 1> (q, k, k, longer, longer, start)
    }"""
    model = parse(text)
    feed = {
        "q": random(2, 2, 3, 16),
        "k": random(2, 2, 3, 16, seed=1),
        "pk": random(2, 2, 9, 16, seed=2),
        "longer": random(2, 2, 12, 16, seed=3),
        "start": np.array([2, 5]),
        "later": np.array([6, 0]),
    }
    lowered = run_pipeline(model, lowering=lowering, precision=precision).model
    assert count_ops(lowered)["Attention"] == 3
    assert differ(run(model, feed), run(lowered, feed)) < (2e-6 if precision == "fp32" else 5e-3)
