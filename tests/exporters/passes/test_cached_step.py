"""LowerCachedStep: one token over a cache becomes selects and grouped queries, and the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from exporters.passes.infer_types import InferTypes
from exporters.passes.lower_cached_step import LowerCachedStep
from exporters.passes.shared.graph import notes_of
from tests.passes_support import count_ops, differ, parse, random, run

GRAPH = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,4,{T},16] q, float[B,{K},{T},16] k, float[B,{K},{T},16] v, float[B,{K},S,16] pk, float[B,{K},S,16] pv,
   int64[B] start) => (float[B,4,{T},16] y, float[B,{K},S,16] nk, float[B,{K},S,16] nv) {{
    y, nk, nv = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = {G}{more}> (q, k, v, pk, pv, start)
}}
"""
TWO_LAYERS = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,4,1,16] q, float[B,2,1,16] k, float[B,2,S,16] a, float[B,2,S,16] b, float[B,2,L,16] c, int64[B] start)
  => (float[B,4,1,16] z, float[B,4,1,16] w) {
    x, na, ma = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 2> (q, k, k, a, a, start)
    z, nb, mb = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 2> (x, k, k, b, b, start)
    w, nc, mc = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 2> (x, k, k, c, c, start)
}
"""


def make(K: int = 2, T: int | str = 1, more: str = "") -> tuple[ir.Model, dict[str, np.ndarray]]:
    model = parse(GRAPH.format(K=K, T=T, G=4 // K, more=more))
    queries = T if isinstance(T, int) else 1
    feed = {"q": random(3, 4, queries, 16), "k": random(3, K, queries, 16, seed=1)}
    feed |= {"v": random(3, K, queries, 16, seed=2), "pk": random(3, K, 12, 16, seed=3)}
    return model, feed | {"pv": random(3, K, 12, 16, seed=4), "start": np.array([1, 6, 11])}


def lower(model: ir.Model) -> bool:
    InferTypes()(model)
    return bool(LowerCachedStep()(model).modified)


@pytest.mark.parametrize(
    "more", ["", ", window: int = 4", ", softcap: float = 2.0", ", window: int = 3, softcap: float = 1.5"]
)
@pytest.mark.parametrize("K", [1, 2, 4])
def test_one_token_keeps_its_numbers(K: int, more: str) -> None:
    model, feed = make(K, more=more)
    before = run(model, feed)
    assert lower(model)
    after = run(model, feed)
    assert differ(before, after) < 1e-6
    assert all(np.array_equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))  # the caches, to the bit
    ops = count_ops(model)
    assert not ops["ScatterElements"] and not ops["Expand"] and not ops["MetagenCachedAttention"]
    assert ops["Add"] == (K < 4)  # one query alone is masked by a Where
    assert notes_of(model).log == ["LowerCachedStep: 1 nodes became selects and products of grouped queries"]


def test_layers_share_what_start_and_capacity_decide() -> None:
    model = parse(TWO_LAYERS)
    feed = {"q": random(2, 4, 1, 16), "k": random(2, 2, 1, 16, seed=1), "a": random(2, 2, 8, 16, seed=2)}
    feed |= {"b": random(2, 2, 8, 16, seed=3), "c": random(2, 2, 9, 16, seed=4), "start": np.array([0, 5])}
    before = run(model, feed)
    assert lower(model)
    assert count_ops(model)["Range"] == 2 == count_ops(model)["LessOrEqual"]  # of S, and of L
    assert differ(before, run(model, feed)) < 1e-6


@pytest.mark.parametrize(
    ("T", "said"), [(2, "it takes 2 new tokens, not one"), ("T", "it takes T new tokens, not one")]
)
def test_several_tokens_keep_the_body(T: int | str, said: str) -> None:
    model, _ = make(T=T)
    assert not lower(model) and count_ops(model)["MetagenCachedAttention"] == 1
    (line,) = notes_of(model).log
    assert line.endswith(f"keeps its body: {said}")


def test_an_unknown_number_of_heads_keeps_the_body() -> None:
    text = GRAPH.format(K=2, T=1, G=2, more="").replace("float[B,4,1,16] q", "float[B,H,1,16] q")
    model = parse(text)
    assert not lower(model)
    assert notes_of(model).log[0].endswith("the number of heads or their size is not known")


def test_a_token_that_does_not_see_itself_is_found_out() -> None:
    """The mutant: Less in place of LessOrEqual."""
    model, feed = make()
    before = run(model, feed)
    lower(model)
    (node,) = [node for node in model.graph if node.op_type == "LessOrEqual"]
    node.op_type = "Less"
    assert differ(before, run(model, feed)) > 0.1


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-6), ("fp16", 4e-3)])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_the_pipeline_of_tensorrt_8_has_it(K: int, precision: str, limit: float) -> None:
    model, feed = make(K)
    lowered = run_pipeline(model, lowering="tensorrt-8", precision=precision).model
    assert not count_ops(lowered)["ScatterElements"] and count_ops(lowered)["Add"] == (K < 4)
    assert differ(run(model, feed), run(lowered, feed)) < limit
    other = run_pipeline(model, lowering="tensorrt-10", precision=precision).model
    assert count_ops(other)["ScatterElements"] == 2
