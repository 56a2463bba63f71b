"""The real TensorRT-RTX compiler, which needs no GPU, takes what the TensorRT pipelines write: a process each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from exporters.passes import Range, list_quantizable_tensors, run_pipeline
from tests.passes_support import parse, random

COMPILE = """
import sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit(str([str(parser.get_error(i)) for i in range(parser.num_errors)]))
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
for i in range(network.num_inputs):
    tensor = network.get_input(i)
    low, high = ([size if size > 0 else bound for size in tensor.shape] for bound in (1, 16))
    profile.set_shape(tensor.name, low, high, high)
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
sys.exit("not built" if engine is None else 0)
"""

# a decoder layer in small: RMSNorm, GQA with a cache, SwiGLU
LAYER = """<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,T,64] x, int64[B] start, float[B,2,S,16] pk, float[B,2,S,16] pv)
    => (float[B,T,64] y, float[B,2,S,16] nk, float[B,2,S,16] nv) {
    two = Constant <value = float {2.0}> ()
    eps = Constant <value = float {0.000001}> ()
    axes = Constant <value = int64[1] {-1}> ()
    heads = Constant <value = int64[4] {0, 0, -1, 16}> ()
    flat = Constant <value = int64[3] {0, 0, 64}> ()
    s = Pow (x, two) m = ReduceMean (s, axes) e = Add (m, eps) r = Sqrt (e) d = Div (x, r) n = Mul (d, weight)
    q1 = MatMul (n, Wq) q2 = Reshape (q1, heads) q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k1 = MatMul (n, Wk) k2 = Reshape (k1, heads) k = Transpose <perm = [0, 2, 1, 3]> (k2)
    v1 = MatMul (n, Wv) v2 = Reshape (v1, heads) v = Transpose <perm = [0, 2, 1, 3]> (v2)
    o, nk, nv = metagen.MetagenCachedAttention <scale: float = 0.25, groups: int = 2> (q, k, v, pk, pv, start)
    t = Transpose <perm = [0, 2, 1, 3]> (o) f = Reshape (t, flat) w = MatMul (f, Wo)
    i = Add (x, w)
    a1 = MatMul (i, Wa) a2 = Reshape (a1, heads) a = Transpose <perm = [0, 2, 1, 3]> (a2)
    p = metagen.MetagenAttention <scale: float = 0.25, causal: int = 1, window: int = 0, groups: int = 2> (a, k, v)
    z1 = Transpose <perm = [0, 2, 1, 3]> (p) z = Reshape (z1, flat)
    h = Add (i, z)
    g1 = metagen.MetagenGatedLinear <activation: string = "silu"> (h, Wg, Wu)
    down = MatMul (g1, Wd)
    y = Add (h, down)
}
"""
SHAPES = {
    "Wq": (64, 64),
    "Wk": (64, 32),
    "Wv": (64, 32),
    "Wo": (64, 64),
    "Wa": (64, 64),
    "Wg": (64, 96),
    "Wu": (64, 96),
    "Wd": (96, 64),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("lowering", ["tensorrt-10", "tensorrt-11"])
def test_the_compiler_takes_it(tmp_path: Path, lowering: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    weights = {name: random(*shape, seed=i, scale=0.1) for i, (name, shape) in enumerate(SHAPES.items())}
    model = parse(LAYER, {**weights, "weight": random(64)})
    ranges = {name: Range(-4, 4) for name in list_quantizable_tensors(model)}
    assert set(ranges) == {"n", "f", "i", "h", "g1"}
    result = run_pipeline(model, lowering=lowering, precision=precision, ranges=ranges)
    path = tmp_path / "model.onnx"
    ir.save(result.model, path)
    native = lowering == "tensorrt-11" and precision != "fp32"
    assert sum(node.op_type == "Attention" for node in result.model.graph) == (2 if native else 0)
    command = [sys.executable, "-c", COMPILE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
