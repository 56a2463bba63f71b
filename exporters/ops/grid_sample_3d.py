"""MetagenGridSample3D: a volume read at the positions of a grid, the body in standard ONNX.

TensorRT and TensorRT-RTX have a 4-D GridSample only. The body works on all three axes at once:

    position  = ((g + 1) size - 1) / 2, or (g + 1) / 2 (size - 1) with align_corners      [N, P, 3], (x, y, z)
    border    clips it to [0, size - 1]; reflection folds it with a triangle wave, then clips; zeros clips to
              [-1, size], beyond which all is zero as well and no index overflows
    voxel row = ((n D + z) H + y) W + x, each axis clamped, so that no Gather leaves the volume
    out       = sum over the 8 corners of wx wy wz rows[corner], rows = x as [N D H W, C]; outside, a weight is 0

The formulas and their order of operations are torch's (`GridSampler.h`). Rounding is to even in both.

Precision: positions, floors and fractions are index arithmetic and stay float32 in half graphs (`keep_float32`); the
fraction is taken from the integer that indexes, so that both come from one value.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(x: Any, grid: Any, mode: str, padding_mode: str, align_corners: bool) -> Any:
    """x [N, C, D, H, W] read at grid [N, D', H', W', 3], whose (x, y, z) lie in [-1, 1] along (W, H, D)."""
    return metagen_opset().MetagenGridSample3D(
        x, grid, mode=mode, padding_mode=padding_mode, align_corners=int(align_corners)
    )


@dataclass(frozen=True, kw_only=True)
class _Volume:
    """The volume as [V, C] and its three sizes in the order of a grid's coordinates, (W, H, D): int64 and float32."""

    rows: ir.Value
    size: ir.Value
    size_float: ir.Value


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    x, grid = inputs
    assert x is not None and grid is not None
    padding, align = str(attributes["padding_mode"]), bool(attributes["align_corners"])
    volume = _flatten(body, x)
    grid_NP3 = body("Reshape", grid, body.constant([0, -1, 3]))
    position_NP3 = _pad(body, _find_positions(body, grid_NP3, volume, align), volume, padding, align)
    build = _build_nearest if attributes["mode"] == "nearest" else _build_trilinear
    sampled_NPC = build(body, position_NP3, x, volume, padding == "zeros")
    sampled_NCP = body("Transpose", sampled_NPC, perm=[0, 2, 1])
    sizes = body("Shape", grid)
    channels = body("Gather", body("Shape", x), body.constant([1]))
    shape = body(
        "Concat",
        body("Gather", sizes, body.constant([0])),
        channels,
        body("Gather", sizes, body.constant([1, 2, 3])),
        axis=0,
    )
    return [body("Reshape", sampled_NCP, shape)]


def _flatten(body: Body, x: ir.Value) -> _Volume:
    """One row of channels a voxel, so that a Gather copies whole rows."""
    x_NVC = body("Transpose", body("Reshape", x, body.constant([0, 0, -1])), perm=[0, 2, 1])
    shape = body("Shape", x)
    row = body("Concat", body.constant([-1]), body("Gather", shape, body.constant([1])), axis=0)
    size = body("Gather", shape, body.constant([4, 3, 2]))
    return _Volume(
        rows=body("Reshape", x_NVC, row),
        size=size,
        size_float=body("Cast", size, to=ir.DataType.FLOAT.value),
    )


def _find_positions(body: Body, grid: ir.Value, volume: _Volume, align: bool) -> ir.Value:
    one, two = body.constant(1.0), body.constant(2.0)
    shifted = body("Add", grid, one)
    if align:
        return body("Mul", body("Div", shifted, two), body("Sub", volume.size_float, one))
    return body("Div", body("Sub", body("Mul", shifted, volume.size_float), one), two)


def _pad(body: Body, position: ir.Value, volume: _Volume, padding: str, align: bool) -> ir.Value:
    zero, one = body.constant(0.0), body.constant(1.0)
    if padding == "zeros":
        return body("Min", body("Max", position, body.constant(-1.0)), volume.size_float)
    last = body("Sub", volume.size_float, one)
    if padding == "reflection":
        position = _reflect(body, position, last if align else volume.size_float, 0.0 if align else -0.5)
    return body("Min", body("Max", position, zero), last)


def _reflect(body: Body, position: ir.Value, span: ir.Value, low: float) -> ir.Value:
    """Mirror at `low` and at `low + span`, with a period of twice the span; a span of 0 has a single place."""
    period = body("Max", body("Mul", span, body.constant(2.0)), body.constant(1.0))
    away = body("Abs", body("Sub", position, body.constant(low)))
    whole = body("Mul", body("Floor", body("Div", away, period)), period)
    turned = body("Abs", body("Sub", body("Sub", away, whole), span))
    return body("Add", body("Sub", span, turned), body.constant(low))


def _build_nearest(body: Body, position: ir.Value, x: ir.Value, volume: _Volume, zeros: bool) -> ir.Value:
    voxel_NP3 = body("Cast", body("Round", position), to=ir.DataType.INT64.value)
    rows_NP = _index_rows(body, [_split_axes(body, _clamp(body, voxel_NP3, volume))], x, volume)[0, 0, 0]
    sampled_NPC = body("Gather", volume.rows, rows_NP, axis=0)
    if not zeros:
        return sampled_NPC
    x_inside, y_inside, z_inside = _split_axes(body, _find_inside(body, voxel_NP3, volume))
    inside_NP = body("And", body("And", x_inside, y_inside), z_inside)
    return body("Where", body("Unsqueeze", inside_NP, body.constant([2])), sampled_NPC, body.constant(0.0))


def _build_trilinear(body: Body, position: ir.Value, x: ir.Value, volume: _Volume, zeros: bool) -> ir.Value:
    low_NP3 = body("Cast", body("Floor", position), to=ir.DataType.INT64.value)
    high_NP3 = body("Add", low_NP3, body.constant(1))
    fraction_NP3 = body("Sub", position, body("Cast", low_NP3, to=ir.DataType.FLOAT.value))
    weights = [body("Sub", body.constant(1.0), fraction_NP3), fraction_NP3]
    corners = [low_NP3, high_NP3]
    if zeros:
        weights = [
            body("Where", _find_inside(body, corner, volume), weight, body.constant(0.0))
            for corner, weight in zip(corners, weights, strict=True)
        ]
    clamped = [_split_axes(body, _clamp(body, corner, volume)) for corner in corners]
    rows = _index_rows(body, clamped, x, volume)
    shares = _multiply_axes(body, [_split_axes(body, weight) for weight in weights])
    total: ir.Value | None = None
    for corner, rows_NP in rows.items():
        share_NP1 = body("Unsqueeze", shares[corner], body.constant([2]))
        term = body("Mul", body("Gather", volume.rows, rows_NP, axis=0), share_NP1)
        total = term if total is None else body("Add", total, term)
    assert total is not None
    return total


def _find_inside(body: Body, voxel_NP3: ir.Value, volume: _Volume) -> ir.Value:
    below = body("Less", voxel_NP3, volume.size)
    return body("And", body("GreaterOrEqual", voxel_NP3, body.constant(0)), below)


def _clamp(body: Body, voxel_NP3: ir.Value, volume: _Volume) -> ir.Value:
    last = body("Sub", volume.size, body.constant(1))
    return body("Min", body("Max", voxel_NP3, body.constant(0)), last)


def _split_axes(body: Body, value_NP3: ir.Value) -> list[ir.Value]:
    """x, y and z, each [N, P]."""
    return [body("Gather", value_NP3, body.constant(axis), axis=2) for axis in range(3)]


_Corner = tuple[int, int, int]  # which of the given places along z, y and x


def _index_rows(body: Body, places: list[list[ir.Value]], x: ir.Value, volume: _Volume) -> dict[_Corner, ir.Value]:
    """((n D + z) H + y) W + x for every combination of places, each of them (x, y, z)."""
    width, height, depth = (body("Gather", volume.size, body.constant(axis)) for axis in range(3))
    sample_N1 = body("Unsqueeze", body.count_up(body.dim(x, 0)), body.constant([1]))
    base = body("Mul", sample_N1, depth)
    choices = range(len(places))
    z_rows = {k: body("Mul", body("Add", base, places[k][2]), height) for k in choices}
    y_rows = {(k, j): body("Mul", body("Add", z_rows[k], places[j][1]), width) for k in choices for j in choices}
    return {(k, j, i): body("Add", y_rows[k, j], places[i][0]) for k, j, i in itertools.product(choices, repeat=3)}


def _multiply_axes(body: Body, weights: list[list[ir.Value]]) -> dict[_Corner, ir.Value]:
    """The product of the weights along x, y and z, for every corner."""
    choices = range(len(weights))
    planes = {(k, j): body("Mul", weights[k][2], weights[j][1]) for k in choices for j in choices}
    return {(k, j, i): body("Mul", planes[k, j], weights[i][0]) for k, j, i in itertools.product(choices, repeat=3)}


GRID_SAMPLE_3D = CustomOp(
    name="MetagenGridSample3D",
    torch_op=torch.ops.metagen.grid_sample_3d.default,
    inputs={"x": "T", "grid": "T"},
    outputs=("out",),
    attributes={
        "mode": ir.AttributeType.STRING,
        "padding_mode": ir.AttributeType.STRING,
        "align_corners": ir.AttributeType.INT,
    },
    translate=_translate,
    build_body=_build_body,
)
