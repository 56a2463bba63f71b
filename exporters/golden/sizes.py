"""Which sizes the golden data of a graph has.

    usual      near 2 and all different: neither a swapped axis nor a size that tracing baked in can hide
    smallest   every dim at its min, where the usual ones would cost more than is spent on golden data

torch runs the golden data once, and every stage of every check as often again: what a film of a billion parameters
takes at its usual two rows is minutes and many gigabytes each time. Where a dim's range allows, the smallest sizes
differ from those of tracing too, so a size that tracing baked in is still seen; rows that mix are not, at one row.

The spec's own counts say at once that most graphs are far from the limits; else one run is counted without values
(`run_cost`). Both are the same on every machine, and so is the golden data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from exporters.golden.run_cost import RunCost, estimate_cost
from exporters.stored_parameters import streaming_parameters
from exporters.trace import choose_sizes
from specs import ops
from specs.graphs import count_activations, count_macs
from specs.handlers import GraphModule, Handler
from specs.schema import Dim, Spec

#: About a minute on two cores, which compute 90e9 a second each in float32.
MOST_MACS = 10_000_000_000_000
#: Of tensors at once; torch and ONNX Runtime hold as much again inside their convolutions.
MOST_BYTES = 4_000_000_000

#: How far below the limits the spec's own counts have to be: they were from 0.8 of an exact count in products, and from
#: 0.19 of it in bytes, over all shipped specs.
_MARGIN = 8

#: Where the first dynamic dim aims. Tracing aims elsewhere.
_NEAR = 2
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class GoldenSizes:
    """A size for every dim; `reduced` says why they are the smallest, "" for the usual ones.

    `at_most` is what a run at these sizes stays below in float32, by the spec's own counts.
    """

    sizes: Mapping[str, int]
    at_most: RunCost
    reduced: str = ""


def choose_golden_sizes(spec: Spec, handler: Handler, graph: GraphModule) -> GoldenSizes:
    """The usual sizes, or the smallest where the usual ones are too dear for this graph."""
    usual = choose_sizes(spec.dims, near=_NEAR)
    smallest = {name: dim.min for name, dim in spec.dims.items()}
    chosen = GoldenSizes(sizes=usual, at_most=_count(spec, graph, usual))
    if not _shrinks(graph, spec.dims, usual) or is_cheap(chosen.at_most):
        return chosen
    try:
        cost = _estimate(spec, handler, graph, usual)
    except (RuntimeError, ValueError):  # a module that looks at values: nobody knows before it ran
        return chosen
    if is_cheap(cost):
        return chosen
    reduced = _explain(graph, usual, smallest, cost)
    return GoldenSizes(sizes=smallest, at_most=_count(spec, graph, smallest), reduced=reduced)


def is_cheap(cost: RunCost) -> bool:
    """Whether golden data of this cost is made."""
    return cost.macs <= MOST_MACS and cost.peak_bytes <= MOST_BYTES


def _shrinks(graph: GraphModule, dims: Mapping[str, Dim], sizes: Mapping[str, int]) -> bool:
    """Whether smaller sizes than these would make this graph's inputs smaller."""
    return any(sizes[name] > dims[name].min for name in _list_dims(graph))


def _list_dims(graph: GraphModule) -> list[str]:
    return list(dict.fromkeys(size for tensor in graph.inputs for size in tensor.shape if isinstance(size, str)))


def _count(spec: Spec, graph: GraphModule, sizes: Mapping[str, int]) -> RunCost:
    """By the spec alone, for pictures at their native size; with a margin, not less than a run takes."""
    macs = count_macs(spec)[graph.component] * sizes.get("batch", 1)
    peak_bytes = 4 * count_activations(spec, sizes)[graph.component].layer
    return RunCost(macs=_MARGIN * macs, peak_bytes=_MARGIN * peak_bytes)


def _estimate(spec: Spec, handler: Handler, graph: GraphModule, sizes: Mapping[str, int]) -> RunCost:
    inputs = handler.make_inputs(spec, graph, sizes=sizes, seed=_SEED)
    with ops.open_bodies(), streaming_parameters(graph.module):
        return estimate_cost(graph.module, *(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs))


def _explain(graph: GraphModule, usual: Mapping[str, int], smallest: Mapping[str, int], cost: RunCost) -> str:
    if cost.macs > MOST_MACS:
        dear = f"{cost.macs / 1e12:.1f}e12 multiply-accumulates, at most {MOST_MACS / 1e12:.0f}e12"
    else:
        dear = f"{cost.peak_bytes / 1e9:.1f} GB of tensors, at most {MOST_BYTES / 1e9:.0f} GB"
    own = _list_dims(graph)
    return (
        f"at {', '.join(f'{name} {smallest[name]}' for name in own)}, the smallest that it takes:"
        f" at {', '.join(f'{name} {usual[name]}' for name in own)} a run takes {dear} are spent on golden data"
    )
