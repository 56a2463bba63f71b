"""Torch's own noise floor: how far its fp32 is from fp64, for the same module and inputs. No engine can be asked to be
closer than that; `specs.tolerance` makes limits of it.

    floor = max |fp32 - fp64|        fp64: each weight widened for the call that uses it, buffers and inputs too

Memory holds one widened weight and float64 activations, whatever the model. Where these do not fit, or would take too
long, nothing is measured and the reason is kept: the fixed limits of `specs.tolerance` hold then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from exporters.golden.data import run_module
from exporters.golden.run_cost import RunCost, estimate_cost
from exporters.golden.slab_convolutions import SlabConvolutions
from exporters.stored_parameters import streaming_parameters
from specs import ops
from specs.handlers import GraphModule

#: About two to four minutes on two cores: 20 to 40 e9 a second were measured in float64, half of float32's.
MOST_MACS = 5_000_000_000_000
#: Beside the tensors that are counted: what operators hold inside themselves, windows of convolutions above all.
_WORKSPACE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Output name -> max |fp32 - fp64| in the output's units, for floating outputs; or why there is none."""

    values: Mapping[str, float] = field(default_factory=dict)
    unknown: str = ""


def measure_noise_floor(
    graph: GraphModule,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    *,
    free_bytes: int | None = None,
    at_most: RunCost | None = None,
) -> NoiseFloor:
    """Run the module in float64 and compare.

    Args:
        outputs: what it answered in float32.
        free_bytes: memory that may be taken; None where nobody knows.
        at_most: what answering in float32 stayed below, by the spec. Where float64 is far below its limits by that,
            nothing has to be counted; None or no products: nobody knows.
    """
    try:
        reason = _find_reason(graph, inputs, free_bytes, at_most)
        if reason:
            return NoiseFloor(unknown=reason)
        exact = compute_exact_outputs(graph, inputs)
    except RuntimeError as error:  # a module that has constants or casts of its own
        return NoiseFloor(unknown=f"the module does not run in float64: {' '.join(str(error).split())[:200]}")
    values = {}
    for name, array in outputs.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        if exact[name].dtype != np.float64:
            return NoiseFloor(unknown=f"the module itself answers '{name}' in {exact[name].dtype.name}")
        if not np.isfinite(exact[name]).all():
            return NoiseFloor(unknown=f"in float64 '{name}' holds NaN or infinity")
        values[name] = float(np.abs(array.astype(np.float64) - exact[name]).max())
    return NoiseFloor(values=values)


def compute_exact_outputs(graph: GraphModule, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the module answers in float64, from the weights as they are stored."""
    with _in_float64(graph):
        return run_module(graph, _widen(inputs))


def estimate_exact_cost(graph: GraphModule, inputs: Mapping[str, np.ndarray]) -> RunCost:
    """What `compute_exact_outputs` would take."""
    wide = _widen(inputs)
    with _in_float64(graph):
        return estimate_cost(graph.module, *(torch.from_numpy(wide[tensor.name]) for tensor in graph.inputs))


def widen_cost(graph: GraphModule, at_most: RunCost) -> RunCost:
    """What float64 stays below when float32 stays below `at_most`: tensors twice as large, every weight widened."""
    weight_bytes = sum(parameter.numel() for parameter in graph.module.parameters()) * torch.float64.itemsize
    return RunCost(macs=at_most.macs, peak_bytes=2 * at_most.peak_bytes + weight_bytes)


def _find_reason(
    graph: GraphModule, inputs: Mapping[str, np.ndarray], free_bytes: int | None, at_most: RunCost | None
) -> str:
    if at_most is not None and at_most.macs and not find_obstacle(widen_cost(graph, at_most), free_bytes):
        return ""
    return find_obstacle(estimate_exact_cost(graph, inputs), free_bytes)


def find_obstacle(cost: RunCost, free_bytes: int | None) -> str:
    """Why a run of this cost is not made, "" when it is."""
    if cost.macs > MOST_MACS:
        return (
            f"in float64 this graph takes {cost.macs / 1e12:.1f}e12 multiply-accumulates,"
            f" at most {MOST_MACS / 1e12:.0f}e12 are spent on it"
        )
    needed = cost.peak_bytes + _WORKSPACE_BYTES
    if free_bytes is not None and needed > free_bytes:
        return f"in float64 this graph takes {needed / 1e9:.1f} GB, {max(free_bytes, 0) / 1e9:.1f} GB are free"
    return ""


@contextlib.contextmanager
def _in_float64(graph: GraphModule) -> Iterator[None]:
    with ops.open_bodies(), SlabConvolutions(), streaming_parameters(graph.module, torch.float64):
        yield


def _widen(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in inputs.items()}
