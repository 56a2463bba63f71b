"""What several tests of the runtime open."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engines.runtime.executors import tensorrt
from tests.engines.runtime.tensorrt_stand_in import MODULE, Device, Stream
from tests.small_bundles import write_classifier


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "tiny.bundle")


@pytest.fixture
def tensorrt_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import tensorrt` gives the stand-in, and streams are those of its device, which is empty."""
    monkeypatch.setitem(sys.modules, "tensorrt", MODULE)
    monkeypatch.setattr(tensorrt, "CudaStream", Stream)
    Device.reset()
