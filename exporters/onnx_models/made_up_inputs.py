"""Inputs that a model takes, made up: a file does not say that two of its dims must be equal, nor what it divides by.

sizes     all different, so that a swapped axis cannot hide -> equal along one axis -> all equal
values    floats in [-1, 1), integers 0 or 1 -> positive floats -> integers 1 (nothing masked); an integer that the
          model compares with a constant (a sample rate, a mode) is that constant
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from exporters.onnx_models.samples import Draw, Feed, make_random_inputs
from exporters.passes.shared.graph import is_onnx, read_constant
from exporters.trace import choose_sizes
from specs.bundle import IoTensor
from specs.schema import Dim

NEAR = 3  # the size that the first dim aims at
_SEED = 0
_DRAWS = (Draw(), Draw(floats=(0.05, 1.0)), Draw(integers=(1, 2)), Draw(floats=(0.05, 1.0), integers=(1, 2)))
#: Operators that hand an integer on.
_SAME_INTEGER = ("Cast", "Gather", "Identity", "Reshape", "Squeeze", "Unsqueeze")
#: Sizes that models are often made for, tried where small ones do not run; and how large an input they may make.
_USUAL_SIZES = (16, 32, 64, 128, 224, 256, 320, 512, 576, 640, 1024, 2048, 4000, 16000, 48000)
_LARGEST_ELEMENTS = 1 << 22


def make_feeds(
    graph: ir.Graph, inputs: Sequence[IoTensor], dims: Mapping[str, Dim]
) -> Iterator[tuple[Feed, Mapping[str, int], Draw]]:
    """Feeds to try in turn, with the sizes and the values that made them."""
    asked = _list_asked(graph, inputs)
    seen: list[dict[str, int]] = []
    for sizes in _list_sizes(dims, inputs):
        if sizes not in seen:
            seen.append(sizes)
            for draw in (replace(one, given=asked) for one in _DRAWS):
                yield make_random_inputs(inputs, sizes, draw, seed=_SEED), sizes, draw


def propose_sizes(
    graph: ir.Graph,
    inputs: Sequence[IoTensor],
    dims: Mapping[str, Dim],
    *,
    chosen: Collection[str],
    runs: Callable[[Feed], bool],
) -> str:
    """`--dim` options with which the model runs, or nothing: batches are 1 and the other dims of a usual size."""
    draw = Draw(given=_list_asked(graph, inputs))
    batches = {tensor.shape[0] for tensor in inputs if tensor.shape}
    inner = [name for name in dims if name not in batches and name not in chosen]
    of_first = [name for name in inner if name in inputs[0].shape]
    for size in _USUAL_SIZES:
        for larger in (inner, of_first) if inner != of_first else (inner,):
            sizes = {name: dim.min if name in chosen else 1 for name, dim in dims.items()} | dict.fromkeys(larger, size)
            counts = (math.prod(sizes[s] if isinstance(s, str) else s for s in tensor.shape) for tensor in inputs)
            if not larger or max(counts) > _LARGEST_ELEMENTS:
                continue
            feed = make_random_inputs(inputs, sizes, draw, seed=_SEED)
            if runs(feed):
                return " ".join(f"--dim '{name}={size}:{size}:{size}'" for name in larger if size > dims[name].max)
    return ""


def _list_sizes(dims: Mapping[str, Dim], inputs: Sequence[IoTensor]) -> Iterator[dict[str, int]]:
    """Sizes to try, from all different to all equal."""
    yield choose_sizes(dims, near=NEAR)
    axes = {
        size: axis for tensor in reversed(inputs) for axis, size in enumerate(tensor.shape) if isinstance(size, str)
    }
    for wanted in ({name: NEAR + 5 * axes.get(name, 0) for name in dims}, dict.fromkeys(dims, 4)):
        yield {name: min(max(wanted[name], dim.min), dim.max) for name, dim in dims.items()}


def _list_asked(graph: ir.Graph, inputs: Sequence[IoTensor]) -> dict[str, int]:
    """Integer inputs of one element that the model asks about by Equal -> a constant that it asks for."""
    single = {tensor.name for tensor in inputs if np.dtype(tensor.dtype).kind in "iu" and set(tensor.shape) <= {1}}
    asked: dict[str, int] = {}
    for node in graph.all_nodes():
        if is_onnx(node, "Equal"):
            for value, other in (node.inputs, node.inputs[::-1]):
                constant, name = read_constant(other), _find_origin(value)
                if constant is not None and constant.size == 1 and name in single:
                    asked.setdefault(name, int(constant.numpy().reshape(())))
    return asked


def _find_origin(value: ir.Value | None) -> str:
    """The graph input that `value` is, or nothing."""
    while value is not None and (node := value.producer()) is not None and is_onnx(node, *_SAME_INTEGER):
        value = node.inputs[0]
    return (value.name or "") if value is not None and value.is_graph_input() else ""
