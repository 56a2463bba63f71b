"""Pictures in, a vector for each out, and how near they are to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from engines.runtime.fields import take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.pictures import PictureGraph
from engines.runtime.pipelines.stages.vectors import make_vector_answer
from engines.runtime.request import Answer, Request, require
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class ImageEmbedding(Pipeline):
    """One graph, picture -> embedding [batch, width]; from a transformer without pooling the mean of its tokens."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        self._pictures = PictureGraph(manifest.pipeline, "graph", graphs)
        if not {"embedding", "token_features"} & {tensor.name for tensor in self._pictures.graph.graph.outputs}:
            take_graph(manifest.pipeline, "graph", graphs, outputs=("embedding",))  # says what is missing

    def encode(self, images: Sequence[str | Path | Array]) -> Array:
        """Embeddings [images, width]; see `load_image` for what a picture may be."""
        if not images:
            raise InputError(
                "there are no pictures to encode",
                allowed="1 or more",
                fix="hand over a picture",
            )
        found = self._pictures.run(images)
        return found["embedding"] if "embedding" in found else found["token_features"].mean(axis=1)

    def answer(self, request: Request) -> Answer:
        require(request, "pictures", files=True)
        return make_vector_answer("picture", request.files, self.encode(request.files))
