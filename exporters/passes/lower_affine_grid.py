"""LowerAffineGrid: AffineGrid -> a product with the places of an untransformed grid; TensorRT has no such operator.

    theta [N, 2, 3] --MatMul(base [3, H W])--> [N, 2, H W] --Transpose, Reshape--> grid [N, H, W, 2]    in 3-D likewise

base: x, y (z in 3-D) and 1 of every place, row by row; x = (2 i + 1) / W - 1, or 2 i / (W - 1) - 1 with align_corners,
where an axis of one place is at 1 as in ONNX Runtime (PyTorch since 1.3 has 0 there, ONNX's function 0 times infinity).

The sizes must be known, from `size` or from the shape of the grid; N may be open. The product stays float32 in float16
graphs: it is small, and a rounded place is another place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.passes.shared.graph import (
    Builder,
    Namer,
    is_onnx,
    list_graphs,
    notes_of,
    read_constant,
    refuse,
    take_over,
)
from exporters.passes.shared.keep_float32 import KEEP_KEY

_REASON = "position: a rounded place to read from is another place"


class LowerAffineGrid(ir.passes.InPlacePass):
    """Fires on every AffineGrid, of any graph; needs shapes (InferTypes).

    Raises:
        GraphError: the sizes of a grid are not known.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        found = [(graph, node) for graph in list_graphs(model) for node in graph if is_onnx(node, "AffineGrid")]
        for graph, node in found:
            _rewrite(Builder(graph, node, namer), node)
        if found:
            notes.log.append(f"LowerAffineGrid: {len(found)} nodes became products with the places of a grid")
        return ir.passes.PassResult(model, modified=bool(found))


def _rewrite(build: Builder, node: ir.Node) -> None:
    theta, size = node.inputs[:2]
    assert theta is not None and theta.dtype is not None
    places = _find_places(node, size)
    aligned = "align_corners" in node.attributes and bool(node.attributes["align_corners"].as_int())
    rank = len(places)
    base = build.constant(make_base(places, aligned=aligned).astype(theta.dtype.numpy()), f"{node.name}/base")
    turned = build("Transpose", build("MatMul", theta, base, dtype=theta.dtype), dtype=theta.dtype)
    build.nodes[-1].attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 1])
    shape = build.constant(np.array([0, *places, rank], np.int64), f"{node.name}/shape")
    grid = build("Reshape", turned, shape, dtype=theta.dtype, shape=node.outputs[0].shape)
    for made in build.nodes:
        made.metadata_props[KEEP_KEY] = _REASON
    build.insert_before(node)
    take_over(build.graph, [node], node, grid)


def _find_places(node: ir.Node, size: ir.Value | None) -> list[int]:
    """[H, W] or [D, H, W]."""
    tensor = read_constant(size)
    if tensor is not None:
        return [int(number) for number in tensor.numpy().reshape(-1)[2:]]
    shape = node.outputs[0].shape
    sizes = [] if shape is None else list(shape)[1:-1]
    known = [number for number in sizes if isinstance(number, int)]
    if len(known) != len(sizes) or len(known) not in (2, 3):
        raise refuse(
            node,
            "TensorRT has no such operator, and the size of its grid is computed from what is only known at run time",
            fix="give the model inputs of one size (--dim 'NAME=SIZE:SIZE:SIZE'), or make the grid an input",
        )
    return known


def make_base(places: Sequence[int], *, aligned: bool) -> NDArray[np.float32]:
    """x, y (, z) and 1 of every place of a grid of [(D,) H, W] places, the last axis first: [3 or 4, places]."""
    axes = [_place(count, aligned=aligned) for count in places]
    meshed = np.meshgrid(*axes, indexing="ij")
    rows = [mesh.reshape(-1) for mesh in reversed(meshed)]
    return np.stack([*rows, np.ones_like(rows[0])]).astype(np.float32)


def _place(count: int, *, aligned: bool) -> NDArray[np.float64]:
    if aligned and count == 1:
        return np.ones(1)
    steps = np.arange(count, dtype=np.float64)
    return 2 * steps / (count - 1) - 1 if aligned else (2 * steps + 1) / count - 1
