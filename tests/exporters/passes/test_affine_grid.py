"""LowerAffineGrid: the grid of ONNX Runtime's own operator, in standard ones that every TensorRT reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import lower_affine_grid, run_pipeline
from exporters.passes.lower_affine_grid import make_base
from specs.errors import GraphError
from tests.passes_support import count_ops, differ, parse, random, run

TEXT = """
<ir_version: 9, opset_import: ["": 20]>
g (float[N,{rank},{columns}] theta) => (float[N,{places},{rank}] grid) {{
    grid = AffineGrid <align_corners = {aligned}> (theta, size)
}}
"""
IMAGE, VOLUME = (3, 4), (2, 3, 4)


def make(places: tuple[int, ...], *, aligned: int, batch: int = 2) -> tuple[ir.Model, dict[str, np.ndarray]]:
    rank = len(places)
    text = TEXT.format(rank=rank, columns=rank + 1, aligned=aligned, places=",".join(map(str, places)))
    return parse(text, {"size": np.array([batch, 3, *places])}), {"theta": random(batch, rank, rank + 1)}


@pytest.mark.parametrize("lowering", ["tensorrt-8", "tensorrt-10", "tensorrt-11"])
@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("places", [IMAGE, VOLUME, (1, 5), (5, 1), (1, 1, 4)])
def test_a_grid_of_known_size(places: tuple[int, ...], aligned: int, lowering: str) -> None:
    model, feed = make(places, aligned=aligned)
    for precision in ("fp32", "fp16"):
        lowered = run_pipeline(model, lowering=lowering, precision=precision).model
        assert "AffineGrid" not in count_ops(lowered)
        assert differ(run(model, feed), run(lowered, feed)) < (1e-6 if precision == "fp32" else 1e-3)


def test_places_of_a_volume_stay_float32() -> None:
    """Behind it nothing reads a position, so that only what this pass says keeps the product."""
    model, _ = make(VOLUME, aligned=0)
    kept = run_pipeline(model, lowering="tensorrt-8", precision="fp16").keep_fp32
    assert any("MatMul" in line and "position" in line for line in kept)


def test_a_batch_that_is_only_known_at_run_time() -> None:
    """As torch writes it: the batch of `size` is read from the picture, whose other sizes are fixed."""
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (float[N,1,3,4] x, float[N,2,3] theta) => (float[N,1,3,4] y) {
        size = Shape (x)
        grid = AffineGrid <align_corners = 0> (theta, size)
        y = GridSample (x, grid)
    }
    """
    model = parse(text, {})
    feed = {"x": random(3, 1, 3, 4), "theta": random(3, 2, 3, seed=1)}
    for lowering in ("tensorrt-8", "tensorrt-11"):
        lowered = run_pipeline(model, lowering=lowering, precision="fp32").model
        assert "AffineGrid" not in count_ops(lowered)
        assert differ(run(model, feed), run(lowered, feed)) < 1e-5


def test_a_grid_of_unknown_size_is_refused_with_a_way_out() -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (float[N,2,3] theta, int64[4] size) => (float[A,B,C,2] grid) { grid = AffineGrid (theta, size) }
    """
    for lowering in ("tensorrt-8", "tensorrt-11"):
        with pytest.raises(GraphError, match=r"AffineGrid .* cannot be lowered: .* only known at run time") as caught:
            run_pipeline(parse(text, {}), lowering=lowering, precision="fp32")
        assert "--dim" in (caught.value.fix or "")
    assert "AffineGrid" in count_ops(run_pipeline(parse(text, {}), lowering="onnxruntime", precision="fp32").model)


@pytest.mark.parametrize("mutant", ["corners", "axes"])
def test_mutants_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(places: list[int], *, aligned: bool) -> np.ndarray:
        base = make_base(places, aligned=aligned != (mutant == "corners"))
        return base[[1, 0, 2]] if mutant == "axes" else base

    model, feed = make(IMAGE, aligned=0)
    monkeypatch.setattr(lower_affine_grid, "make_base", change)
    lowered = run_pipeline(model, lowering="tensorrt-8", precision="fp32").model
    assert differ(run(model, feed), run(lowered, feed)) > 0.1
