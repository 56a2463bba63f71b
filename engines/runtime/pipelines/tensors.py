"""Named tensors in, named tensors out: any graph, without a meaning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from engines.runtime.fields import take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.request import Request
from specs.bundle import Manifest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class Tensors(Pipeline):
    """One graph of the bundle."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        self.graph = take_graph(manifest.pipeline, "graph", graphs)

    def answer(self, request: Request) -> None:
        return None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `GraphSession.run`."""
        return self.graph.run(inputs)
