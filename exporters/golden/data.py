"""Golden data: seeded inputs and what torch answers in fp32, kept as arrays so that checking an engine needs no torch.

    <graph>.golden.npz       input:<name>, output:<name>
    <graph>.evaluation.npz   input:<name>, labels             held-out data, where the spec names some

How far these answers are from float64 is in `noise_floor.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from exporters.stored_parameters import streaming_parameters
from specs.errors import ExportError
from specs.handlers import GraphModule


def compute_outputs(graph: GraphModule, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the module in fp32, whatever its parameters are stored in.

    Raises:
        ExportError: an output holds NaN or infinity: a reference like that would let every engine pass or fail.
    """
    with streaming_parameters(graph.module):
        outputs = run_module(graph, inputs)
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(
                f"the torch model itself answers NaN or infinity in '{name}'",
                where=f"graph '{graph.name}'",
                fix="check the weights: no engine built from this model could be right",
            )
    return outputs


def write_golden(path: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Write the golden file."""
    arrays = {f"input:{name}": a for name, a in inputs.items()} | {f"output:{name}": a for name, a in outputs.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes `allow_pickle` for one of the arrays


def write_evaluation(path: Path, inputs: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    """Write the held-out data."""
    np.savez_compressed(path, labels=labels, **{f"input:{name}": a for name, a in inputs.items()})  # type: ignore[arg-type]


def run_module(graph: GraphModule, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph's outputs by name, computed as its module computes by itself."""
    with torch.inference_mode():
        result = graph.module(*(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs))
    values = result if isinstance(result, (tuple, list)) else (result,)
    return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, values, strict=True)}
