"""Ours against the library that made the checkpoint, measured in the library's own rounding.

    error   max |ours - library in float64|
    floor   max |library in float32 - library in float64|: what the library itself is off by

Ours may be off by FLOORS of that: the same additions in another order. Every comparison is data for the table of
docs/checkpoints.md, written to the file that METAGEN_CHECKPOINT_ROWS names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from metagen_deploy import pipeline
from specs.bundle.files import read_manifest
from specs.progress import ignore_progress

Array = NDArray[Any]

ROWS = "METAGEN_CHECKPOINT_ROWS"  # names the file of the table's data; mutants have no place in it
FLOORS = 4.0
_RMS_SHARE = 2e-7  # where the library's own error happens to be nil


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    family: str
    case: str
    stage: str  # "torch", "onnx", "tokens"
    output: str
    max_abs: float
    floor: float
    rms: float

    @property
    def limit(self) -> float:
        return FLOORS * self.floor + _RMS_SHARE * self.rms


def compare(
    family: str, case: str, stage: str, output: str, ours: Array, fp32: Array | torch.Tensor, fp64: Array | torch.Tensor
) -> Row:
    """Measure, record and judge one output.

    Args:
        ours, fp32, fp64: of one shape; what padding makes meaningless is left out by the caller.
    """
    reference, own = np.asarray(fp64, np.float64), np.asarray(fp32, np.float64)
    assert ours.shape == reference.shape == own.shape, (ours.shape, own.shape, reference.shape)
    assert np.isfinite(ours).all(), f"{family} {case}: {output} is not finite"
    rms = float(np.sqrt(np.square(reference).mean()))
    assert rms > 1e-4, f"{family} {case}: {output} is near nothing, and would prove nothing"
    row = Row(
        family=family,
        case=case,
        stage=stage,
        output=output,
        max_abs=float(np.abs(ours - reference).max()),
        floor=float(np.abs(own - reference).max()),
        rms=rms,
    )
    record(row)
    assert row.max_abs <= row.limit, f"{row}: more than {row.limit:.3g}"
    return row


def record(row: Row) -> None:
    """Append the row to the table's data, when somebody asked for it."""
    if path := os.environ.get(ROWS):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def record_tokens(family: str, case: str, ours: Array, theirs: Array) -> None:
    """Greedy tokens: equal, or the test fails."""
    same = ours.shape == theirs.shape and bool((ours == theirs).all())
    record(Row(family=family, case=case, stage="tokens", output="equal", max_abs=float(not same), floor=0, rms=1))
    assert same, f"{family} {case}: {ours} instead of {theirs}"
    assert len(np.unique(ours)) > 1, "one token all along would prove nothing"


def enliven(model: nn.Module, *, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Fresh models have norms of 1, biases of 0 and weights near 0: give every parameter a value that matters.

    Matrices get rows of length `scale`, norms lie around what they were, biases around 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.dim() > 1:
                parameter.copy_(noise * scale * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * noise.to(parameter.dtype))
    return model.eval()


def export(folder: Path, bundle: Path, **options: Any) -> Path:
    """The checkpoint as a bundle, by the tool's own path; verified there."""
    pipeline.export(str(folder), output=bundle, progress=ignore_progress, **options)
    return bundle


def open_portable(bundle: Path) -> dict[str, Callable[[Mapping[str, Array]], dict[str, Array]]]:
    """Every portable graph of a bundle by name, as a function of its named inputs."""

    def open_graph(path: Path) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda feed: dict(zip(names, session.run(None, dict(feed)), strict=True))

    return {graph.name: open_graph(bundle / graph.file) for graph in read_manifest(bundle).graphs}
