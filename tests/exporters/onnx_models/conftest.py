"""Odd models as files, and how they are checked without a process each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.checking import apart as parity_apart
from engines.checking import parity
from tests.exporters.onnx_models import odd_models


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
