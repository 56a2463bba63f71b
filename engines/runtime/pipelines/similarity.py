"""Pictures and texts in, how well each pair fits out (CLIP's zero-shot classification; Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import get_batch_range, pad_rows, run_rows, softmax
from engines.runtime.pipelines.stages.pictures import PictureGraph
from engines.runtime.request import Answer, Request, require
from engines.runtime.text.context import ContextTokenizer
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class ImageTextSimilarity(Pipeline):
    """Two towers and a fusion that ends in `similarity` [batch, batch], scaled as the model was trained."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._images = PictureGraph(config, "image_encoder", graphs, outputs=("image_features",))
        self._texts = take_graph(config, "text_encoder", graphs, inputs=("token_ids",), outputs=("text_features",))
        features = ("image_features", "text_features")
        self._fusion = take_graph(config, "fusion", graphs, inputs=features, outputs=("similarity",))
        self._context = ContextTokenizer(folder, manifest, take_field(config, "tokenizer", dict))
        self._is_sigmoid = config.get("fusion_kind") == "fusion.sigmoid"

    def encode_images(self, images: Sequence[str | Path | Array]) -> Array:
        """Features [images, width]; see `load_image` for what a picture may be."""
        _require_some(images, "pictures")
        return self._images.run(images)["image_features"]

    def encode_texts(self, texts: Sequence[str]) -> Array:
        """Features [texts, width]."""
        _require_some(texts, "texts")
        token_ids = np.stack([self.tokenize(text) for text in texts])
        return run_rows(self._texts, {"token_ids": token_ids})["text_features"]

    def tokenize(self, text: str) -> Array:
        """Ids, the end-of-text id, and padding: int64 [context_length]. A text that is too long is an InputError."""
        return self._context.encode(text)

    def compare(self, images: Sequence[str | Path | Array], texts: Sequence[str]) -> Array:
        """Scaled similarity of every picture with every text, [images, texts]."""
        return self.compare_features(self.encode_images(images), self.encode_texts(texts))

    def classify(self, image: str | Path | Array, texts: Sequence[str]) -> list[tuple[str, float]]:
        """(text, probability) of one picture among `texts`, likeliest first.

        CLIP chooses among the texts, and its probabilities add up to 1; SigLIP's are of each text alone.
        """
        similarity = self.compare([image], texts)
        probabilities = (_sigmoid(similarity) if self._is_sigmoid else softmax(similarity))[0]
        return [(texts[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")]

    def answer(self, request: Request) -> Answer:
        require(request, "pictures, and texts to compare them with", files=True, prompts=True)
        rows = [
            (file, text, round(probability, 6))
            for file in request.files
            for text, probability in self.classify(file, request.prompts)
        ]
        return Answer(header=("picture", "text", "probability"), rows=tuple(rows))

    def compare_features(self, image_features: Array, text_features: Array) -> Array:
        """Similarity [images, texts] of encoded pictures and texts.

        The graph takes as many pictures as texts, so the shorter side is filled up, and more than its batch range
        takes are compared block by block.
        """
        rows, columns = len(image_features), len(text_features)
        low, high = get_batch_range(self._fusion)
        side = max(low, min(max(rows, columns), high or max(rows, columns)))
        similarity = np.empty((rows, columns), np.float32)
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                feed = {
                    "image_features": pad_rows(image_features[top : top + side], side),
                    "text_features": pad_rows(text_features[left : left + side], side),
                }
                block = self._fusion.run(feed, ["similarity"], check_finite=True)["similarity"]
                target = similarity[top : top + side, left : left + side]
                target[:] = block[: target.shape[0], : target.shape[1]]
        return similarity


def _sigmoid(scores: Array) -> Array:
    shares: Array = 0.5 * (1.0 + np.tanh(0.5 * scores.astype(np.float64)))
    return shares


def _require_some(items: Sequence[object], name: str) -> None:
    if not items:
        raise InputError(
            f"there are no {name} to encode",
            allowed="1 or more",
            fix=f"hand over {name}",
        )
