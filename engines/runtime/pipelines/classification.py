"""Pictures in, labels with probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_strings
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import softmax
from engines.runtime.pipelines.stages.pictures import PictureGraph
from engines.runtime.request import Answer, Request, require
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class ImageClassification(Pipeline):
    """One graph, picture -> logits. Labels are the manifest's, or the index where it names none."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._pictures = PictureGraph(config, "graph", graphs, outputs=("logits",))
        self._labels = take_strings(config, "labels")

    def classify(self, image: str | Path | Array, *, top_k: int = 5) -> list[tuple[str, float]]:
        """The `top_k` likeliest (label, probability), likeliest first; see `load_image` for what a picture may be."""
        return self.classify_all([image], top_k=top_k)[0]

    def classify_all(self, images: Sequence[str | Path | Array], *, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """`classify` for each picture, in as few calls as the graph's batch range allows."""
        if top_k < 1 or not images:
            raise InputError(
                "nothing to classify",
                got=f"{len(images)} pictures, top_k {top_k}",
                allowed="1 or more",
                fix="hand over a picture, and ask for one label or more",
            )
        probabilities = softmax(self._pictures.run(images)["logits"])
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [(self._name_class(int(c)), float(row[c])) for c in order]
            for row, order in zip(probabilities, best, strict=True)
        ]

    def answer(self, request: Request) -> Answer:
        require(request, "pictures", files=True)
        found = self.classify_all(request.files, top_k=request.top_k)
        rows = [
            (file, label, round(probability, 6))
            for file, best in zip(request.files, found, strict=True)
            for label, probability in best
        ]
        return Answer(header=("picture", "label", "probability"), rows=tuple(rows))

    def _name_class(self, index: int) -> str:
        return self._labels[index] if index < len(self._labels) else str(index)
