"""What several tests of the runtime open."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_bundles import (
    write_classifier,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "tiny.bundle")
