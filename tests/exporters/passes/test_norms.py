"""The two norms that diffusion models are made of, lowered for every target class: numbers, operators, precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from exporters.ops.group_norm_silu import LARGE, split_group
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
        if lowering == "onnxruntime":
            assert not halves, "there fp16 is how weights are stored"
        else:
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


LARGE_GROUP = """<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,16,32768] x) => (float[B,16,32768] y) {
    y = metagen.MetagenGroupNormSilu <groups: int = 1, eps: float = 0.00001, rank: int = 3 ROWS> (x, weight, bias)
}
"""


def _make_large(rows: tuple[int, int] | None) -> ir.Model:
    spelled = "" if rows is None else f", rows: int = {rows[0]}, row: int = {rows[1]}"
    weights = {"weight": random(16, seed=1) + 1, "bias": random(16, seed=2)}
    return parse(LARGE_GROUP.replace("ROWS", spelled), weights)


def _measure_large(model: ir.Model) -> tuple[float, float]:
    """Largest error of a model against float64, and torch's own in float32."""
    x = random(1, 16, 32768, scale=2) + np.float32(0.3)
    values = [torch.from_numpy(array) for array in (x, random(16, seed=1) + 1, random(16, seed=2))]

    def normalise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
        return functional.silu(functional.group_norm(x, 1, weight, bias, 1e-5)).numpy()

    exact = normalise(*(value.double() for value in values))
    (got,) = run(model, {"x": x})
    return float(np.abs(got - exact).max()), float(np.abs(normalise(*values) - exact).max())


def test_a_large_group_is_as_exact_as_torch_s() -> None:
    """One sum after the other loses 20 times what torch loses: that refused an avatar at full size."""
    rows = split_group((16, 32768), 1)
    assert rows == (512, 1024)
    for model in (_make_large(rows), run_pipeline(_make_large(rows), lowering="onnxruntime", precision="fp32").model):
        error, floor = _measure_large(model)
        assert error < 3 * floor
    error, floor = _measure_large(_make_large(None))
    assert error > 6 * floor, "the mutant: one operator"


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_large_group_on_every_target(lowering: str, precision: str) -> None:
    """TensorRT sums in parts itself: one operator there. In fp16 the sums stay in float32."""
    result = run_pipeline(_make_large((512, 1024)), lowering=lowering, precision=precision)
    counts = count_ops(result.model)
    assert counts["ReduceSum"] == (4 if lowering == "onnxruntime" else 0)
    assert counts["InstanceNormalization"] + counts["GroupNormalization"] == (lowering != "onnxruntime")
    halves = {n.op_type for n in result.model.graph if any(o.dtype == ir.DataType.FLOAT16 for o in n.outputs)}
    assert "ReduceSum" not in halves
    error, _ = _measure_large(result.model)
    assert error < (2e-2 if precision == "fp16" else 1e-4)


def test_which_groups_are_summed_in_rows() -> None:
    assert split_group((64, 16, 64, 64), 8) == (512, 1024)
    assert split_group((64, LARGE // 8 - 1), 8) is None, "small"
    assert split_group((64, "width", 4096), 8) is None, "its size is not known"
    assert split_group((1, 262147), 1) is None, "a prime number of values has no rows"
