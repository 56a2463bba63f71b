"""One layer of a decode step as ONNX text, with every part that FuseStep takes, and the two ways to run it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes import PipelineResult, run_pipeline
from exporters.passes.infer_types import InferTypes
from tests.passes_support import parse, random
from tests.step_ops import run_reference

#: A layer of 4 heads over 2, of 8 channels each, with every part that may be fused.
LAYER = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,1,32] x, float[B,2,S,8] pk, float[B,2,S,8] pv, int64[B] start, float[B,1,1,4] angle)
  => (float[B,1,32] y, float[B,2,S,8] nk, float[B,2,S,8] nv)
<int64[1] last = {-1}, float two = {2.0}, float epsilon = {0.1}, int64[2] halves = {4, 4},
 int64[4] of_q = {0, 1, 4, 8}, int64[4] of_k = {0, 1, 2, 8}, int64[3] rows = {0, 1, 32},
 float[B,4,1,8] a, float[B,1,24] gated> {
    cos = Cos (angle)
    sin = Sin (angle)
    x2 = Pow (x, two)
    x_mean = ReduceMean (x2, last)
    x_sum = Add (x_mean, epsilon)
    x_root = Sqrt (x_sum)
    x_inverse = Reciprocal (x_root)
    x_scaled = Mul (x, x_inverse)
    n = Mul (x_scaled, n_weight)
    q_product = MatMul (n, q_weight)
    q = Add (q_product, q_bias)
    q_heads = Reshape (q, of_q)
    q_turned = Transpose <perm = [0, 2, 1, 3]> (q_heads)
    k_product = MatMul (n, k_weight)
    k = Add (k_product, k_bias)
    k_heads = Reshape (k, of_k)
    k_turned = Transpose <perm = [0, 2, 1, 3]> (k_heads)
    v_product = MatMul (n, v_weight)
    v = Add (v_product, v_bias)
    v_heads = Reshape (v, of_k)
    v_turned = Transpose <perm = [0, 2, 1, 3]> (v_heads)
    qa, qb = Split <axis = 3> (q_turned, halves)
    q1 = Mul (qa, cos)
    q2 = Mul (qb, sin)
    q3 = Sub (q1, q2)
    q4 = Mul (qb, cos)
    q5 = Mul (qa, sin)
    q6 = Add (q4, q5)
    q_rotated = Concat <axis = -1> (q3, q6)
    ka, kb = Split <axis = 3> (k_turned, halves)
    k1 = Mul (ka, cos)
    k2 = Mul (kb, sin)
    k3 = Sub (k1, k2)
    k4 = Mul (kb, cos)
    k5 = Mul (ka, sin)
    k6 = Add (k4, k5)
    k_rotated = Concat <axis = -1> (k3, k6)
    a, nk, nv = metagen.MetagenCachedAttention <scale: float = 0.3, groups: int = 2, window: int = 4>
        (q_rotated, k_rotated, v_turned, pk, pv, start)
    a_turned = Transpose <perm = [0, 2, 1, 3]> (a)
    a_rows = Reshape (a_turned, rows)
    o = MatMul (a_rows, o_weight)
    h = Add (x, o)
    h2 = Mul (h, h)
    h_mean = ReduceMean (h2, last)
    h_sum = Add (epsilon, h_mean)
    h_root = Sqrt (h_sum)
    h_scaled = Div (h, h_root)
    m = Mul (m_weight, h_scaled)
    gated = metagen.MetagenGatedLinear <activation: string = "silu"> (m, gate_weight, up_weight)
    down = MatMul (gated, down_weight)
    y = Add (down, h)
}
"""
LARGEST = {"B": 4, "S": 100}
#: Seen: 5e-7 of rounding in float32, 2.1e-3 in float16.
LIMITS = {"fp32": 3e-6, "fp16": 6e-3}
FUSED = {"MetagenStepLinear": 4, "MetagenStepAttention": 1, "Cos": 1, "Sin": 1}


def _make_weights() -> dict[str, np.ndarray]:
    shapes = {"q": (32, 32), "k": (32, 16), "v": (32, 16), "o": (32, 32), "gate": (32, 24), "up": (32, 24)}
    shapes["down"] = (24, 32)
    weights = {f"{name}_weight": random(*shape, seed=i, scale=0.2) for i, (name, shape) in enumerate(shapes.items())}
    weights |= {f"{name}_bias": random(shapes[name][1], seed=40 + index) for index, name in enumerate("qkv")}
    return weights | {"n_weight": 1 + random(32, seed=8, scale=0.2), "m_weight": 1 + random(32, seed=9, scale=0.2)}


def make(
    *changes: tuple[str, str], weights: dict[str, np.ndarray] | None = None
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The layer, each of `changes` (what stands there, what shall) made once; and inputs for it."""
    text = LAYER
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    feed = {"x": random(3, 1, 32, seed=20), "pk": random(3, 2, 12, 8, seed=21), "pv": random(3, 2, 12, 8, seed=22)}
    start = np.array([1, 6, 11])
    feed |= {"start": start, "angle": (start[:, None] * np.array([1, 0.3, 0.1, 0.03]))[:, None, None].astype("f4")}
    return read(text, weights), feed


def read(text: str, weights: dict[str, np.ndarray] | None = None) -> ir.Model:
    """With the shapes of every value, as an export stores them."""
    model = parse(text, _make_weights() | (weights or {}))
    InferTypes()(model)
    return model


def fuse(model: ir.Model, precision: str = "fp32") -> PipelineResult:
    return run_pipeline(model, lowering="tensorrt-8", precision=precision, plugins=True, largest=LARGEST)


def said(result: PipelineResult) -> list[str]:
    return [line.removeprefix("FuseStep: ") for line in result.log if line.startswith("FuseStep")]


def run_fused(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run_reference(ir.to_proto(model), feed)
