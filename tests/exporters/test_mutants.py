"""Each stage of an export broken in turn, in the live code: none of them makes a bundle, parity refuses every one.

The unit tests say that each stage is right; this table says that the gates at the end would notice if it were not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import weights
from exporters.passes import convert_to_float16, fold_transposed_weights
from exporters.passes.int8 import insert_dynamic_quantization, insert_quantize_dequantize, weighted
from metagen_deploy import pipeline
from specs.errors import ParityError
from specs.progress import ignore_progress
from tests.passes_support import random

# x W1^T -> GELU -> W2 -> softmax over what a mask leaves -> W3: what every stage of an export touches
TEXT = """<ir_version: 10, opset_import: ["": 18]> g (float[B,64] x) => (float[B,64] y) {
    w = Transpose <perm = [1, 0]> (W1) p = MatMul (x, w)
    root = Constant <value = float {1.4142135623730951}> () one = Constant <value = float {1.0}> ()
    half = Constant <value = float {0.5}> ()
    a = Div (p, root) b = Erf (a) c = Add (b, one) d = Mul (p, c) h = Mul (d, half)
    q = MatMul (h, W2) s = Add (q, mask) t = Softmax <axis = 1> (s) u = Mul (t, x) y = MatMul (u, W3)
}"""
WEIGHTS = {name: random(64, 64, seed=seed, scale=0.125) for seed, name in enumerate(("W1", "W2", "W3"))}
MASK = np.where(np.arange(64) % 3 == 0, np.finfo(np.float32).min, 0).astype(np.float32)

Change = Callable[[Any], Any]


def wrap(change: Callable[[Any], Any]) -> Change:
    """A mutant that spoils what a function returns."""
    return lambda right: lambda *args, **options: change(right(*args, **options))


MUTANTS: dict[str, tuple[Any, str, Change]] = {
    "a transposed weight is not transposed": (
        fold_transposed_weights,
        "transpose_lazily",
        lambda right: lambda tensor, axes: right(tensor, tuple(range(len(axes)))),
    ),
    "a weight is read from 64 bytes before its place": (
        weights.WeightPool,
        "_append",
        wrap(lambda offset: max(0, offset - 64)),
    ),
    "equal bytes of another type share a place": (
        weights,
        "_view_bytes",
        lambda right: lambda tensor: memoryview(bytes(len(right(tensor)))),
    ),
    "float16 loses its masks": (
        convert_to_float16,
        "_narrow",
        lambda right: (
            lambda array, half, limit: right(np.where(array < -1e3, 0, array).astype(np.float32), half, limit)
        ),
    ),
    "float16 is scaled": (
        convert_to_float16,
        "_narrow",
        lambda right: (
            lambda array, half, limit: right(
                np.asarray(array * np.where(np.abs(array) < 10, np.float32(1.1), np.float32(1))), half, limit
            )
        ),
    ),
    "int8 scales of weights are halved": (
        weighted,
        "round_scale",
        lambda right: lambda scale: right(np.asarray(scale) / 2),
    ),
    "ranges are a tenth": (
        insert_quantize_dequantize._Inserter,
        "_read_scale",
        wrap(lambda scale: scale / np.float32(10)),
    ),
    "rows are divided, and not multiplied again": (
        insert_dynamic_quantization,
        "divide_rows",
        lambda right: (
            lambda build, value, **options: (
                right(build, value, **options)[0],
                build.constant(np.float32(1)),
            )
        ),
    ),
}


def export(folder: Path) -> None:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in {**WEIGHTS, "mask": MASK}.items()
    )
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "samples.npz", x=random(96, 64, seed=9))  # enough rows for a static range
    pipeline.export(
        str(folder / "m.onnx"),
        output=folder / "o.bundle",
        targets=("cpu", "h200@trt8.6"),
        precisions=("fp32", "fp16", "int8"),
        calibration=folder / "samples.npz",
        progress=ignore_progress,
    )


def test_the_right_code_makes_a_bundle(tmp_path: Path) -> None:
    export(tmp_path)
    assert (tmp_path / "o.bundle/manifest.json").is_file()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_makes_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, change = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, change(getattr(owner, attribute)))
    with pytest.raises(ParityError, match="is outside tolerance"):
        export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "samples.npz"]
