"""(graph module, dims) -> torch.export.ExportedProgram. Every dynamic dimension comes from the spec's `dims`.

Not here: ONNX. `lower.py` is the next step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from exporters.shortcuts import skip_stack_traces
from exporters.stored_parameters import widening_forward
from specs.errors import ExportError
from specs.handlers import GraphModule
from specs.schema import Dim


def make_dynamic_shapes(graph: GraphModule, dims: Mapping[str, Dim]) -> tuple[Any, ...]:
    """For every input, axis -> torch dimension, nested as the module's `forward` takes its arguments.

    A dim whose min equals its max is static and does not appear.
    """
    symbols = {
        name: torch.export.Dim(name, min=dim.min, max=dim.max) for name, dim in dims.items() if dim.min < dim.max
    }
    shapes = tuple(
        {axis: symbols[size] for axis, size in enumerate(tensor.shape) if size in symbols} for tensor in graph.inputs
    )
    parameters = inspect.signature(graph.module.forward).parameters.values()
    named = sum(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return shapes if named >= len(shapes) else (*shapes[:named], shapes[named:])


def choose_sizes(dims: Mapping[str, Dim], *, near: int) -> dict[str, int]:
    """A size for every dim, no two equal where their ranges allow it, so that a swapped axis cannot hide.

    `near` is where the first dim aims; 0 and 1 are avoided, since torch would specialise on them.
    """
    sizes: dict[str, int] = {}
    for offset, (name, dim) in enumerate(dims.items()):
        wanted = near + 5 * offset
        while wanted in sizes.values():
            wanted += 1
        sizes[name] = min(max(wanted, dim.min), dim.max)
    return sizes


def trace(graph: GraphModule, dims: Mapping[str, Dim], inputs: Mapping[str, np.ndarray]) -> ExportedProgram:
    """Capture the module's computation for every size that `dims` allows, in float32: a narrow parameter gets a Cast.

    Args:
        inputs: example arrays, one per graph input; their sizes leave no trace in the program.

    Raises:
        ExportError: the module's control flow depends on data or on a dimension that the spec calls dynamic.
    """
    arguments = tuple(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs)
    try:
        with torch.no_grad(), widening_forward(graph.module), skip_stack_traces():
            return torch.export.export(
                graph.module, arguments, dynamic_shapes=make_dynamic_shapes(graph, dims), strict=False
            )
    except (torch._dynamo.exc.UserError, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode) as error:
        ranges = ", ".join(f"{name} {dim.min}..{dim.max}" for name, dim in dims.items())
        raise ExportError(
            f"torch could not capture component '{graph.component}' for every size of its dynamic dims",
            where=f"graph '{graph.name}', dims {ranges}",
            got=str(error).strip().splitlines()[0],
            fix="narrow the dim in the spec's `dims`, or remove the size-dependent branch from the module",
        ) from error
