"""A session over the TensorRT stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.runtime.graph_session import GraphSession
from tests.engines.runtime.stand_in_calls import open_session


@pytest.fixture
def session(tensorrt_stand_in: None, tmp_path: Path) -> GraphSession:
    return open_session(tmp_path)
