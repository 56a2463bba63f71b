"""What several tests of building start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engines.bundles import make_model, make_weights, write_bundle


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    return make_weights()


@pytest.fixture
def bundle(weights: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """A bundle for a CPU in fp32 and a GeForce in fp16."""
    typed = {("cpu", "fp32"): make_model(weights), ("rtx-4090", "fp16"): make_model(weights, precision="fp16")}
    write_bundle(tmp_path / "b", typed)
    return tmp_path / "b"
