"""Where a volume is read is computed in float32 in a float16 graph, as far back as arithmetic goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from tests.passes_support import parse, run

DEPTH, HEIGHT, WIDTH, SHIFTS = 4, 32, 32, 3

#: Shifts, padded by none at all, are added to every voxel's place, which is a table of float64.
MODEL = """<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,CHANNELS,4,32,32] x, float[B,3,3] from, float[B,3,3] to) => (float[M,CHANNELS,4,32,32] y) {
    places = Cast <to: int = 1> (table)
    shift = Sub (from, to)
    padded = Pad (shift, pads)
    spread = Unsqueeze (padded, axes)
    sources = Add (places, spread)
    grid = Reshape (sources, shape)
    volumes = Expand (x, many)
    y = metagen.MetagenGridSample3D <mode: string = "bilinear", padding_mode: string = "border", align_corners: int = 0>
        (volumes, grid)
}
"""


def make_model(channels: int) -> ir.Model:
    sizes = (DEPTH, HEIGHT, WIDTH)
    axes = [(2 * np.arange(size) + 1) / size - 1 for size in sizes]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    weights = {
        "table": np.stack([x, y, z], axis=-1),
        "pads": np.array([0, 1, 0, 0, 0, 0]),
        "axes": np.array([2, 3, 4]),
        "shape": np.array([-1, *sizes, 3]),
        "many": np.array([SHIFTS + 1, 1, 1, 1, 1]),
    }
    return parse(MODEL.replace("CHANNELS", str(channels)), weights)


def make_feed(channels: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    draw = {"x": (1, channels, DEPTH, HEIGHT, WIDTH), "from": (1, 3, 3), "to": (1, 3, 3)}
    return {name: random.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in draw.items()}


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"])
@pytest.mark.parametrize("channels", [4, 16])
def test_positions_are_followed_back(lowering: str, channels: int) -> None:
    """Native below nine channels on ONNX Runtime, else the body: either way no position passes through float16."""
    typed = run_pipeline(make_model(channels), lowering=lowering, precision="fp16").model
    values = {value.name: value for node in typed.graph for value in node.outputs}
    for name in ("places", "shift", "padded", "spread", "sources", "grid"):
        assert values[name].dtype == ir.DataType.FLOAT, name
    feed = make_feed(channels)
    (wanted,) = run(make_model(channels), feed)
    (got,) = run(typed, feed)
    # the volume's own rounding: 2^-12 of 0.5; positions in float16 would move by up to 1/64 voxel of noise
    assert np.abs(got - wanted).max() < 1e-3


def test_float16_positions_would_show() -> None:
    """The mutant: what the comparison says of positions that were rounded on the way."""
    feed = make_feed(4)
    (wanted,) = run(make_model(4), feed)
    rounded = {**feed, "from": feed["from"].astype(np.float16).astype(np.float32)}
    (got,) = run(make_model(4), rounded)
    assert np.abs(got - wanted).max() > 2e-3
