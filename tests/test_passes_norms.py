"""The two norms that diffusion models are made of, lowered for every target class: numbers, operators, precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from exporters.passes import run_pipeline
from exporters.passes.lower_group_norm import LowerGroupNorm
from tests.passes_support import count_ops, differ, parse, random, run

LOWERINGS = ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"]

GROUP = """<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,32,H,6] x) => (float[B,32,H,6] y) {
    y = metagen.MetagenGroupNormSilu <groups: int = GROUPS, eps: float = 0.00001, rank: int = 4> (x, weight, bias)
}
"""
ADA = """<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,T,32] x, float[B,1,32] shift, float[B,1,32] scale) => (float[B,T,32] y) {
    y = metagen.MetagenAdaLayerNorm <eps: float = 0.000001, channels: int = 32> (x, shift, scale)
}
"""


def _make_group_norm(groups: int = 8) -> ir.Model:
    weights = {"weight": random(32, seed=1) + 1, "bias": random(32, seed=2)}
    return parse(GROUP.replace("GROUPS", str(groups)), weights)


def _expect_group_norm(x: np.ndarray, groups: int = 8, eps: float = 1e-5) -> np.ndarray:
    weight, bias = (torch.from_numpy(t) for t in (random(32, seed=1) + 1, random(32, seed=2)))
    return functional.silu(functional.group_norm(torch.from_numpy(x), groups, weight, bias, eps)).numpy()


def _expect_ada(feed: dict[str, np.ndarray]) -> np.ndarray:
    x, shift, scale = (torch.from_numpy(feed[name]) for name in ("x", "shift", "scale"))
    return (functional.layer_norm(x, (32,), eps=1e-6) * (1 + scale) + shift).numpy()


def _make_ada_feed(size: float = 1.0, offset: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "x": random(2, 5, 32, seed=3, scale=size) + np.float32(offset),
        "shift": random(2, 1, 32, seed=4),
        "scale": random(2, 1, 32, seed=5),
    }


@pytest.mark.parametrize("groups", [1, 8, 32])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_group_norm_answers_as_torch(lowering: str, groups: int) -> None:
    x = random(2, 32, 5, 6, scale=2)
    typed = run_pipeline(_make_group_norm(groups), lowering=lowering, precision="fp32").model
    got = run(typed, {"x": x})
    assert differ([_expect_group_norm(x, groups)], got) < 5e-6
    for wrong in {1, 8, 32} - {groups}:
        assert differ([_expect_group_norm(x, wrong)], got) > 0.1, "the mutant: another number of groups"
    assert differ([_expect_group_norm(x[:, ::-1].copy(), groups)], got) > 0.1, "the mutant: channels out of order"
    small = x * 1e-2  # where epsilon weighs
    assert differ([_expect_group_norm(small, groups, eps=1e-6)], run(typed, {"x": small})) > 1e-4, "another epsilon"


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_ada_layer_norm_answers_as_torch(lowering: str) -> None:
    feed = _make_ada_feed()
    typed = run_pipeline(parse(ADA), lowering=lowering, precision="fp32").model
    got = run(typed, feed)
    assert differ([_expect_ada(feed)], got) < 5e-6
    swapped = {**feed, "shift": feed["scale"], "scale": feed["shift"]}
    assert differ([_expect_ada(swapped)], got) > 0.1, "the mutant: shift and scale swapped"
    other = {**feed, "scale": feed["scale"][::-1].copy()}
    assert differ([_expect_ada(other)], got) > 0.1, "the mutant: another sample's scale"
    assert differ([_expect_ada({**feed, "scale": feed["scale"] - 1})], got) > 0.1, "the mutant: 1 + scale made scale"


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_statistics_do_not_overflow_float16(lowering: str) -> None:
    """|x| around 1000: its square is beyond float16, so no mean of squares may be spelled out in half precision."""
    x = random(2, 32, 5, 6, scale=300) + np.float32(1000)
    group = run_pipeline(_make_group_norm(), lowering=lowering, precision="fp16")
    ada = run_pipeline(parse(ADA), lowering=lowering, precision="fp16")
    for result, norms in (
        (group, {"InstanceNormalization", "GroupNormalization"}),
        (ada, {"LayerNormalization"}),
    ):
        halves = {n.op_type for n in result.model.graph if any(o.dtype == ir.DataType.FLOAT16 for o in n.outputs)}
        assert halves & norms, "the norm runs in half precision, as one operator"
        assert not {op for op in halves if op.startswith("Reduce") or op == "Pow"}
    # float16 has a step of 0.5 at 1000, and the group's deviation is 300
    assert differ([_expect_group_norm(x)], run(group.model, {"x": x})) < 2e-2
    feed = _make_ada_feed(300, 1000)
    assert differ([_expect_ada(feed)], run(ada.model, feed)) < 2e-2
    assert np.square(x).max() > 65504, "or this test would show nothing"


def test_only_tensorrt_11_gets_group_normalization() -> None:
    """Opset 21 scales channels; the operator of opset 18 has the same name and scales groups."""
    for lowering in LOWERINGS:
        result = run_pipeline(_make_group_norm(), lowering=lowering, precision="fp32")
        counts = count_ops(result.model)
        native = lowering == "tensorrt-11"
        assert (counts["GroupNormalization"], counts["InstanceNormalization"]) == ((1, 0) if native else (0, 1))
        assert ("LowerGroupNorm: 1 nodes became GroupNormalization and SiLU" in result.log) == native
        if native:
            assert result.model.opset_imports[""] == 21


def test_the_rewrite_leaves_other_nodes_alone() -> None:
    model = parse(ADA)
    assert not LowerGroupNorm()(model).modified
    assert count_ops(model) == {"MetagenAdaLayerNorm": 1}
