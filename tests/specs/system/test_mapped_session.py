"""A session that leaves weights in their files: the same answers, in a fraction of the memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.weights import WeightPool
from specs.system import mapped_session
from specs.system.mapped_session import has_large_weights, make_mapped_session

LAYERS, WIDTH = 8, 2048
WIDE_MB = LAYERS * WIDTH * WIDTH * 4 / 2**20  # 128: all weights in float32


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x -> MatMul(x, Cast(W)) eight times, 64 MB in float16; the product inside a function as custom ops have it, and
    before it a reshape by the sizes of a transpose, which ONNX Runtime rewrites: a new node, and last in its order."""
    nodes = [
        f"p{i} = Transpose <perm = [1, 0]> (x{i}) s{i} = Shape (p{i}) b{i} = Slice (s{i}, one, two, zero)"
        f" t{i} = Concat <axis = 0> (b{i}, rest) y{i} = Reshape (x{i}, t{i})"
        f" w{i} = Cast <to = 1> (W{i}) x{i + 1} = own.Product (y{i}, w{i})"
        for i in range(LAYERS)
    ]
    constants = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] rest = {-1}"
    text = f"""<ir_version: 10, opset_import: ["": 18, "own": 1]>
    g (float[batch,{WIDTH}] x0) => (float[batch,{WIDTH}] x{LAYERS}) <{constants}> {{ {" ".join(nodes)} }}
    <opset_import: ["": 18], domain: "own"> Product (a, b) => (c) {{ c = MatMul (a, b) }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    rng = np.random.default_rng(0)
    for i in range(LAYERS):
        tensor = ir.tensor((rng.standard_normal((WIDTH, WIDTH), np.float32) / 45).astype(np.float16), name=f"W{i}")
        value = values[f"W{i}"]
        value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), tensor.shape
        model.graph.register_initializer(value)
    folder = tmp_path_factory.mktemp("chain")
    WeightPool(folder).store(model)
    ir.save(model, folder / "chain.onnx")
    return folder / "chain.onnx"


def test_it_answers_as_an_ordinary_session(chain: Path) -> None:
    feed = {"x0": np.random.default_rng(1).standard_normal((1, WIDTH), np.float32)}
    providers = ["CPUExecutionProvider"]
    wanted = onnxruntime.InferenceSession(str(chain), providers=providers).run(None, feed)[0]
    session = make_mapped_session(chain, onnxruntime.SessionOptions(), providers=providers)
    for _ in range(2):  # what was dropped is read again
        np.testing.assert_allclose(session.run(None, feed)[0], wanted, atol=1e-4)


MEASURE = """
import sys
import numpy as np, onnx, onnxruntime, onnx.inliner
from pathlib import Path
from specs.system.mapped_session import make_mapped_session

def read_peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

path, mapped, before = Path(sys.argv[1]), sys.argv[2] == "mapped", read_peak()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
if mapped:
    session = make_mapped_session(path, options, providers=["CPUExecutionProvider"])
else:
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
session.run(None, {"x0": np.ones((1, %d), np.float32)})
print(read_peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's figures are read from /proc")
def test_memory_holds_one_widened_weight_at_a_time(chain: Path) -> None:
    grown = {
        kind: float(
            subprocess.run(
                [sys.executable, "-c", MEASURE % WIDTH, str(chain), kind], check=True, capture_output=True, text=True
            ).stdout
        )
        for kind in ("mapped", "ordinary")
    }
    assert grown["ordinary"] > WIDE_MB, "or there is nothing to gain"
    # one weight in float32 (16 MB), what the dropper has not got to yet (at most all 64 MB), and the runtime's own
    assert grown["mapped"] < 0.85 * WIDE_MB, grown


def test_small_models_get_an_ordinary_session(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_large_weights(chain)
    monkeypatch.setattr(mapped_session, "MAPPED_BYTES", 64 << 20)
    assert has_large_weights(chain)
