"""The real TensorRT-RTX compiler takes the lowered norms and every case of the 3-D grid sample, which it lacks."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from tests.exporters.passes.test_rtx import COMPILE
from tests.passes_support import parse, random

_SAMPLES = list(itertools.product(("bilinear", "nearest"), ("zeros", "border", "reflection"), (0, 1)))


def _spell() -> str:
    """One graph with all of them: a compilation takes seconds."""
    lines = [
        f'y{i} = metagen.MetagenGridSample3D <mode: string = "{mode}", padding_mode: string = "{padding}",'
        f" align_corners: int = {align}> (volume, grid)"
        for i, (mode, padding, align) in enumerate(_SAMPLES)
    ]
    outputs = ", ".join(f"float[B,8,2,3,4] y{i}" for i in range(len(_SAMPLES)))
    return f"""<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
    g (float[B,8,4,5,6] x, float[B,2,3,4,3] grid, float[B,T,16] tokens, float[B,1,16] shift, float[B,1,16] scale)
        => ({outputs}, float[B,T,16] ada) {{
        volume = metagen.MetagenGroupNormSilu <groups: int = 4, eps: float = 0.00001, rank: int = 5> (x, weight, bias)
        {chr(10).join(lines)}
        ada = metagen.MetagenAdaLayerNorm <eps: float = 0.000001, channels: int = 16> (tokens, shift, scale)
    }}"""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("lowering", ["tensorrt-10", "tensorrt-11"])
def test_the_compiler_takes_it(tmp_path: Path, lowering: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = parse(_spell(), {"weight": random(8), "bias": random(8, seed=1)})
    result = run_pipeline(model, lowering=lowering, precision=precision)
    path = tmp_path / "model.onnx"
    ir.save(result.model, path)
    done = subprocess.run([sys.executable, "-c", COMPILE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
