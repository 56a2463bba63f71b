"""Odd models as files, and how they are checked without a process each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.checking import apart as parity_apart
from engines.checking import parity
from metagen_deploy import pipeline
from specs.bundle import Manifest
from specs.report import ParityReport
from specs.schema import Precision
from tests.exporters.onnx_models import odd_models
from tests.exporters.onnx_models.judged_models import Export


@pytest.fixture
def check_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process a model would take minutes in all."""
    monkeypatch.setattr(parity_apart.BundleChecker, "start", lambda self: None)
    monkeypatch.setattr(
        parity_apart.BundleChecker,
        "check",
        lambda self, folder, progress: parity.check_bundle(folder, progress=progress),
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes each model once."""
    folder = tmp_path_factory.mktemp("models")

    def write(name: str) -> Path:
        place = folder / name
        if place.is_dir():
            return place / f"{name}.onnx"
        place.mkdir()
        return odd_models.write(name, place)

    return write


@pytest.fixture
def export(tmp_path: Path, check_in_this_process: None) -> Export:
    """Exports to o.bundle, with inputs as calibration data."""

    def run(
        path: Path, *targets: str, inputs: np.ndarray | None = None, precision: Precision = "int8"
    ) -> tuple[Manifest, ParityReport]:
        if inputs is not None:
            np.savez(tmp_path / "c.npz", x=inputs[:, None])
        return pipeline.export(
            str(path),
            output=tmp_path / "o.bundle",
            targets=targets,
            precisions=(precision,),
            calibration=tmp_path / "c.npz" if inputs is not None else None,
            progress=lambda *_: None,
        )

    return run
