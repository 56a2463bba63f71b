"""Every shipped spec in fp16: from YAML to a compiled engine, each graph compared with torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.graphs import list_graphs
from specs.load import load_spec
from tests.zoo.whole_path import list_tiny_specs, walk


@pytest.mark.parametrize("name", list_tiny_specs())
def test_whole_path(name: str, tmp_path: Path) -> None:
    built = walk(name, "fp16", tmp_path / "bundle")
    assert len(built.rows) == len(list_graphs(load_spec(name)))
