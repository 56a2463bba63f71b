"""Float16 graphs that end the process inside ONNX Runtime's own optimiser are loaded without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

from engines.onnx_files.read import parse_onnx

#: Torch's TransformerEncoder has these three: a factor, and a product of what was turned (ONNX Runtime's issue 28392).
TURNED = """
<ir_version: 8, opset_import: ["": 17]>
g (float16[B, 24, 512] a, float16[B, 24, 128] n, float16[128, 384] w) => (float16[24, B, 384] y, float16[B, 24, 512] m)
<float16 k = {14336}> {
  m = Mul (a, k)
  t = Transpose <perm = [1, 0, 2]> (n)
  y = MatMul (t, w)
}"""


def test_a_product_of_turned_halves_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "turned.onnx"
    path.write_bytes(onnx.parser.parse_model(TURNED).SerializeToString())
    command = "from pathlib import Path; from engines.backends.onnxruntime import make_session; import sys; "
    command += "make_session(Path(sys.argv[1]))"
    assert subprocess.run([sys.executable, "-c", command, str(path)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("(float16[N] x) => (float16[N] y) { y = Relu (x) }", True),
        ("(float[N] x) => (float[N] y) { h = Cast <to = 10> (x) r = Relu (h) y = Cast <to = 1> (r) }", True),
        ("(float[N] x) => (float[N] y) { h = Cast <to = 16> (x) y = Cast <to = 1> (h) }", True),
        ("(int64[1] n) => (float[N] y) { h = EyeLike <dtype = 10> (n) y = Cast <to = 1> (h) }", True),
        ("(float[1] x) => (float[1] y) <float16 w = {15360}> { v = Cast <to = 1> (w) y = Mul (x, v) }", False),
        ("(float[N] x) => (float[N] y) { y = Relu (x) }", False),
    ],
)
def test_halves_are_found_where_they_are_more_than_stored(body: str, expected: bool) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {body}')
    assert parse_onnx(memoryview(model.SerializeToString()), Path("m.onnx")).has_halves() == expected
