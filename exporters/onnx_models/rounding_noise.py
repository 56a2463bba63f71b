"""How far rounding to 8 bits, and nothing else, moves what a float32 graph answers: the noise floor of int8.

    x --Clip to its range--> x + u s, u drawn from [-1/2, 1/2)      s = range / 127, of the tensor or of each row
    W -------------------->  W + u s                                s = largest |W| of an output channel / 127

The same products, ranges and steps as int8 has, in float32 arithmetic and from the portable graph: no zero point, scale
or rewrite of a typed graph has a part in it. What is much further from the truth than this was not rounded but broken.
Smoothed and split channels (`passes.int8.scaling`) round finer, so that the floor lies above them.

Not here: what the distance means (`engines.checking.held_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx_models.run_apart import RefusedError, RunApart, running_apart
from exporters.onnx_models.samples import Feed
from exporters.passes import Range, copy_for_int8
from exporters.passes.int8.row_scale import divide_rows
from exporters.passes.int8.weighted import WeightedNode, find_weighted, quantize_weight
from exporters.passes.shared.graph import Builder, Namer, add_initializer

_DRAWS = 2
_LEVELS = 127
_OF_ROWS = ("MatMul", "Gemm")
_SMALLEST_ROW = float(np.finfo(np.float32).tiny)
#: A model with more weights is not copied to learn this.
_LARGEST_BYTES = 1 << 28


def measure_rounding(
    portable: Path,
    ranges: Mapping[str, Range],
    feeds: Sequence[Feed],
    answers: Sequence[Mapping[str, NDArray[Any]]],
    *,
    by_rows: bool,
    scratch: Path,
) -> list[dict[str, NDArray[np.float64]]]:
    """For every feed: output -> how far rounding moved each of its elements, in its units, in two draws.

    Args:
        portable: the float32 graph; its `answers` to `feeds` are known.
        by_rows: MatMul and Gemm take the range of each row, as on CPUs; else all have their calibrated range.
        scratch: an empty folder.

    Returns: [] where nothing is rounded, or it cannot be told (too large a model, other shapes, no finite answer).
    """
    model = ir.load(portable)
    if sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value) > _LARGEST_BYTES:
        return []
    model = copy_for_int8(model)
    if not _add_noise(model, ranges, by_rows=by_rows):
        return []
    place = scratch / "rounded.onnx"
    ir.save(model, place)
    try:
        with running_apart(place, scratch, data_folder=portable.parent) as noisy:
            return [_measure(noisy, feed, answer) for feed, answer in zip(feeds, answers, strict=True)]
    except RefusedError:
        return []
    finally:
        place.unlink()


def _measure(noisy: RunApart, feed: Feed, answer: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    errors: dict[str, list[NDArray[np.float64]]] = {n: [] for n, array in answer.items() if array.dtype == np.float32}
    for _ in range(_DRAWS):
        moved = noisy.run(feed)
        for name in list(errors):
            if moved[name].shape != answer[name].shape or not np.isfinite(moved[name]).all():
                del errors[name]
            else:
                errors[name].append((moved[name].astype(np.float64) - answer[name]).reshape(-1))
    return {name: np.concatenate(drawn) for name, drawn in errors.items()}


def _add_noise(model: ir.Model, ranges: Mapping[str, Range], *, by_rows: bool) -> int:
    """Change `model` in place; returns how many products are rounded."""
    namer, random = Namer(model), np.random.default_rng(0)
    rounded: dict[ir.Value, ir.Value] = {}
    weights: dict[tuple[ir.Value, int | None], ir.Value] = {}
    found = [
        weighted
        for weighted in find_weighted(model.graph)
        if not weighted.left_out
        and weighted.activation.name in ranges
        and not (by_rows and "Conv" in weighted.node.op_type)
    ]
    for weighted in found:
        value, key = weighted.activation, (weighted.weight, weighted.channel_axis)
        if value not in rounded:
            build = Builder(model.graph, weighted.node, namer)
            size = _measure_rows(build, value, model.opset_imports[""]) if by_rows else None
            rounded[value] = _round(build, value, ranges[value.name or ""], size, seed=1.0 + len(rounded))
            build.insert_before(weighted.node)
        if key not in weights:
            tensor = ir.tensor(_move_weight(weighted, random))
            weights[key] = add_initializer(model.graph, tensor, namer(f"{weighted.weight.name}/rounded"))
        weighted.node.replace_input_with(0, rounded[value])
        weighted.node.replace_input_with(1, weights[key])
    return len(found)


def _measure_rows(build: Builder, value: ir.Value, opset: int) -> ir.Value:
    _, size = divide_rows(build, value, factor=None, lowest=None, opset=opset, smallest=_SMALLEST_ROW)
    return size


def _round(build: Builder, value: ir.Value, span: Range, size: ir.Value | None, *, seed: float) -> ir.Value:
    """`value` with noise of a step of its rows' `size`, or within `span` and with noise of a step of that."""
    noise = build("RandomUniformLike", value, attributes={"low": -0.5, "high": 0.5, "seed": seed, "dtype": 1})
    if size is None:
        size = build.constant(np.array(max(abs(span.low), abs(span.high)), np.float32))
        value = build("Min", build("Max", value, build("Neg", size)), size)
    step = build("Div", size, build.constant(np.array(_LEVELS, np.float32)))
    return build("Add", value, build("Mul", noise, step))


def _move_weight(weighted: WeightedNode, random: np.random.Generator) -> NDArray[np.float32]:
    _, scale = quantize_weight(weighted.tensor, weighted.channel_axis)
    array = weighted.tensor.numpy().astype(np.float32)
    if weighted.channel_axis is not None:
        shape = [1] * array.ndim
        shape[weighted.channel_axis] = -1
        scale = scale.reshape(shape)
    moved: NDArray[np.float32] = (array + random.uniform(-0.5, 0.5, array.shape) * scale).astype(np.float32)
    return moved
