"""Texts in, a vector for each out, and how near they are to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import get_batch_range, pad_rows
from engines.runtime.pipelines.stages.vectors import make_vector_answer
from engines.runtime.request import Answer, Request, require
from engines.runtime.text.tokenizers import make_tokenizer
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class TextEmbedding(Pipeline):
    """One graph, token ids (and lengths) -> embedding [batch, width]. Texts that are too long are cut."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._graph = take_graph(config, "graph", graphs)
        self._names = [tensor.name for tensor in self._graph.graph.inputs]
        self._outputs = [tensor.name for tensor in self._graph.graph.outputs]
        self._settings: dict[str, object] = take_field(config, "tokenizer", dict)
        self._tokenizer = make_tokenizer(folder, manifest, self._settings)
        self._max_tokens = take_field(config, "max_tokens", int)
        low, _, high = self._graph.dims.get("tokens", (1, 1, self._max_tokens))
        self._fewest, self._longest = low, min(high, self._max_tokens)

    def tokenize(self, text: str) -> list[int]:
        """Ids of one text, at most as many as the graph takes; a text without any is an InputError."""
        ids = self._tokenizer.encode(text, longest=self._longest)
        end = self._settings.get("end_of_text")
        if isinstance(end, int):  # of a tokenizer that does not put it there itself
            ids = [*ids[: self._longest - 1], end]
        if not ids:
            raise InputError("a text is empty", allowed="one character or more", fix="leave it away")
        return ids

    def encode(self, texts: Sequence[str]) -> Array:
        """Embeddings [texts, width], float32.

        Texts of about the same length run together, so that short ones are not padded to the longest.
        """
        if not texts:
            raise InputError(
                "there are no texts to encode",
                allowed="1 or more",
                fix="hand over a text",
            )
        if "embedding" not in self._outputs:
            raise InputError(
                "this encoder gives features of tokens, and no vector of a text",
                got=", ".join(self._outputs),
                fix="hand over token ids: --input token_ids=IDS.npy --input lengths=LENGTHS.npy",
            )
        rows = [self.tokenize(text) for text in texts]
        low, high = get_batch_range(self._graph)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        step = high or len(rows)
        vectors: dict[int, Array] = {}
        for start in range(0, len(order), step):
            block = order[start : start + step]
            feed = {name: pad_rows(value, low) for name, value in self._pad([rows[i] for i in block]).items()}
            found = self._graph.run(feed, ["embedding"], check_finite=True)["embedding"]
            vectors.update(zip(block, found[: len(block)], strict=True))
        return np.stack([vectors[index] for index in range(len(rows))])

    def _pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Array]:
        """Rows of one length, and how much of each is text."""
        lengths = np.array([len(row) for row in rows], np.int64)
        pad_to = self._settings.get("pad_to")
        width = max(int(lengths.max()), self._fewest, pad_to if isinstance(pad_to, int) else 0)
        padding = self._settings.get("pad_token")
        ids = np.full((len(rows), width), padding if isinstance(padding, int) else 0, np.int64)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = found
        values = {"token_ids": ids, "lengths": lengths}
        return {name: values[name] for name in self._names}

    def answer(self, request: Request) -> Answer:
        require(request, "texts", prompts=True)
        return make_vector_answer("text", request.prompts, self.encode(request.prompts))
