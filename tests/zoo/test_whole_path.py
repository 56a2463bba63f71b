"""Every shipped spec in fp16 and in int8: from YAML to compiled engines, each graph compared with torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.graphs import list_graphs
from specs.load import load_spec
from tests.zoo.whole_path import list_tiny_specs, walk


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in list_tiny_specs()]
)
def test_whole_path(name: str, tmp_path: Path) -> None:
    built = walk(name, ("fp16", "int8"), tmp_path)
    assert len(built) == 2 * len(list_graphs(load_spec(name)))
