"""Pictures in, a vector for each out, and how near they are to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_graph
from engines.runtime.image import load_image
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.batching import run_rows
from engines.runtime.pipelines.classification import take_image_size
from engines.runtime.pipelines.vectors import make_vector_answer
from engines.runtime.request import Answer, Request, require
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class ImageEmbedding(Pipeline):
    """One graph, image -> embedding [batch, width]; from a transformer without pooling the mean of its tokens."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        self._graph = take_graph(manifest.pipeline, "graph", graphs, inputs=("image",))
        if not {"embedding", "token_features"} & {tensor.name for tensor in self._graph.graph.outputs}:
            take_graph(manifest.pipeline, "graph", graphs, outputs=("embedding",))  # says what is missing
        self._size = take_image_size(manifest.pipeline)

    def encode(self, images: Sequence[str | Path | Array]) -> Array:
        """Embeddings [images, width]; see `load_image` for what a picture may be."""
        if not images:
            raise InputError("there are no pictures to encode", allowed="1 or more")
        pixels = np.concatenate([load_image(image, **self._size) for image in images])
        found = run_rows(self._graph, {"image": pixels})
        return found["embedding"] if "embedding" in found else found["token_features"].mean(axis=1)

    def answer(self, request: Request) -> Answer:
        require(request, "pictures", files=True)
        return make_vector_answer("picture", request.files, self.encode(request.files))
