"""Golden data: seeded inputs and what torch answers in fp32, kept as arrays so that checking an engine needs no torch.

    <graph>.golden.npz       input:<name>, output:<name>
    <graph>.evaluation.npz   input:<name>, labels             held-out data, where the spec names some

Also measures torch's own noise floor: how far fp32 is from fp64 on the same inputs. No engine can be asked to be
closer than that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from exporters.slab_convolutions import SlabConvolutions
from exporters.stored_parameters import streaming_parameters
from specs.errors import ExportError
from specs.handlers import GraphModule

#: A float64 copy of a larger module would cost more memory than the export itself; its floor is not measured.
NOISE_FLOOR_PARAMETERS = 32_000_000


def compute_outputs(graph: GraphModule, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the module in fp32, whatever its parameters are stored in.

    Raises:
        ExportError: an output holds NaN or infinity: a reference like that would let every engine pass or fail.
    """
    with streaming_parameters(graph.module):
        outputs = _run(graph.module, graph, inputs)
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(
                f"the torch model itself answers NaN or infinity in '{name}'",
                where=f"graph '{graph.name}'",
                fix="check the weights: no engine built from this model could be right",
            )
    return outputs


def measure_noise_floor(
    graph: GraphModule, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Output name -> max |fp32 - fp64|, in the output's units; empty for a module over NOISE_FLOOR_PARAMETERS."""
    if sum(p.numel() for p in graph.module.parameters()) > NOISE_FLOOR_PARAMETERS:
        return {}
    with SlabConvolutions():
        exact = _run(copy.deepcopy(graph.module).double(), graph, {k: _widen(v) for k, v in inputs.items()})
    return {
        name: float(np.abs(outputs[name].astype(np.float64) - exact[name]).max())
        for name in outputs
        if outputs[name].dtype.kind == "f"
    }


def write_golden(path: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Write the golden file."""
    arrays = {f"input:{name}": a for name, a in inputs.items()} | {f"output:{name}": a for name, a in outputs.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes `allow_pickle` for one of the arrays


def write_evaluation(path: Path, inputs: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    """Write the held-out data."""
    np.savez_compressed(path, labels=labels, **{f"input:{name}": a for name, a in inputs.items()})  # type: ignore[arg-type]


def _run(module: torch.nn.Module, graph: GraphModule, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        result = module(*(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs))
    values = result if isinstance(result, (tuple, list)) else (result,)
    return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, values, strict=True)}


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array
