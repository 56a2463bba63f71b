"""A spectrogram is found by what it is made of, stays float32, and is no part of the precision that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.onnx_files.precision import measure_front_end, measure_shares, require_precision
from exporters.passes import run_pipeline
from exporters.passes.int8.weighted import find_weighted
from exporters.passes.shared.spectra import find_spectra
from specs.errors import BuildError
from tests.passes_support import count_ops, differ, parse, random, run

HEADER = '<ir_version: 8, opset_import: ["" : 18]>\n'
SPECTROGRAM = (
    HEADER
    + """spectrum (float[1, 1, 4000] samples) => (float[1, 8, T] y) {
    both = Conv <strides = [20]> (samples, kernels)
    re, im = Split <axis = 1, num_outputs = 2> (both)
    re2 = Mul (re, re)
    im2 = Mul (im, im)
    power = Add (re2, im2)
    mel = MatMul (filters, power)
    kept = Clip (mel, floor)
    quiet = Log (kept)
    z = Conv (quiet, weight)
    y = Relu (z)
}"""
)
WEIGHTS = {
    "kernels": random(10, 1, 64, scale=0.1),
    "filters": np.abs(random(6, 5, seed=1)),
    "floor": np.array(1e-10, np.float32),
    "weight": random(8, 6, 1, seed=2, scale=0.3),
}
NEAR_MISSES = {
    "an activation": ("power = Add (re2, im2)", "sum = Add (re2, im2)\n    power = Sigmoid (sum)"),
    "no square": ("re2 = Mul (re, re)\n    im2 = Mul (im, im)", "re2 = Neg (re)\n    im2 = Mul (im, re)"),
    "no logarithm": ("quiet = Log (kept)", "quiet = Sqrt (kept)"),
}


def make_model(text: str = SPECTROGRAM) -> ir.Model:
    model = parse(text, WEIGHTS)
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    return model


def test_the_chain_from_samples_to_the_logarithm_is_found() -> None:
    found = {node.op_type for node in find_spectra(make_model().graph)}
    assert found == {"Conv", "Split", "Mul", "Add", "MatMul", "Clip"}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_network_s_own_logarithm_is_none(name: str) -> None:
    before, after = NEAR_MISSES[name]
    assert not find_spectra(make_model(SPECTROGRAM.replace(before, after)).graph)


def test_half_precision_leaves_it_alone() -> None:
    """A tone beside silence: with the transform in float16 the quiet bands are off by more than a tenth."""
    samples = np.sin(np.arange(4000) / 3, dtype=np.float32)[None, None]
    samples += random(1, 1, 4000, seed=3, scale=1e-4)
    model = make_model()
    exact = run(model, {"samples": samples})
    for precision, limit in (("fp16", 2e-3), ("bf16", 2e-2)):
        lowering = "tensorrt-10" if precision == "fp16" else "tensorrt-11"
        result = run_pipeline(model, lowering=lowering, precision=precision)
        kept = {
            entry.partition(": ")[0] for entry in result.keep_fp32 if entry.partition(": ")[2].startswith("spectrum")
        }
        assert {"node_both", "node_mel", "node_power"} <= kept and "node_z" not in kept
        assert count_ops(result.model)["Cast"] == 2
        if precision == "fp16":
            assert differ(exact, run(result.model, {"samples": samples})) < limit


def test_int8_leaves_it_out() -> None:
    left_out = {one.node.name: one.left_out for one in find_weighted(make_model().graph)}
    assert left_out["node_both"] == "it makes a spectrum, and the logarithm behind it shows every rounding"


def test_its_share_is_spared_when_a_precision_is_required(tmp_path: Path) -> None:
    result = run_pipeline(make_model(), lowering="tensorrt-10", precision="fp16")
    path = tmp_path / "typed.onnx"
    ir.save(result.model, path)
    names = {entry.partition(": ")[0] for entry in result.keep_fp32 if ": spectrum" in entry}
    shares, spared = measure_shares(path), measure_front_end(path, {}, names)
    assert shares.compute["fp32"] == pytest.approx(spared, rel=1e-6) and spared > 0.8
    assert measure_front_end(path, {}, ()) == 0.0
    require_precision(shares, "fp16", where="here", front_end=spared)
    with pytest.raises(BuildError, match="fp16 was asked for, and the graph does not compute in it"):
        require_precision(shares, "fp16", where="here")
