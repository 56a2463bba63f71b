"""Pictures and a prompt in, text out.

    picture -> image_encoder -> projector -> N embeddings;  prompt -> ids, N image tokens for each picture -> decoder

Where the prompt's text has no image token, the pictures stand before it, behind what begins every text.
Letters: B batch, N tokens of a picture, C width of the decoder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.image import load_image
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.batching import run_rows
from engines.runtime.pipelines.cached_decoder import CachedDecoder
from engines.runtime.pipelines.classification import take_image_size
from engines.runtime.request import Answer, Request
from engines.runtime.text import list_end_tokens, make_tokenizer
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class ImageTextToText(Pipeline):
    """An image tower, a projector, and a decoder with a cache."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        features, embeddings = ("image_features",), ("image_embeddings",)
        self._encoder = take_graph(config, "image_encoder", graphs, inputs=("image",), outputs=features)
        self._projector = take_graph(config, "projector", graphs, inputs=features, outputs=embeddings)
        self._decoder = CachedDecoder(config, graphs, given=embeddings)
        self._size = take_image_size(config)
        self._image_token = take_field(config, "image_token", int)
        self._image_tokens = take_field(config, "image_tokens", int)
        tokenizer: dict[str, object] = take_field(config, "tokenizer", dict)
        self.tokenizer = make_tokenizer(folder, manifest, tokenizer)
        self._end_tokens = list_end_tokens(tokenizer)

    def embed(self, images: Sequence[str | Path | Array]) -> Array:
        """Pictures as the decoder reads them: [images, N, C]; see `load_image` for what a picture may be."""
        pixels = np.concatenate([load_image(image, **self._size) for image in images])
        return run_rows(self._projector, run_rows(self._encoder, {"image": pixels}))["image_embeddings"]

    def encode(self, prompt: str, pictures: int) -> list[int]:
        """Ids of a prompt with N image tokens for each of so many pictures.

        Raises:
            InputError: the text has another number of image tokens than there are pictures.
        """
        ids = self.tokenizer.encode(prompt)
        if self._image_token not in ids:
            start = self._count_start(ids)
            ids = [*ids[:start], *[self._image_token] * pictures, *ids[start:]]
        if ids.count(self._image_token) != pictures:
            raise InputError(
                "the prompt speaks of another number of pictures than were handed over",
                got=f"{ids.count(self._image_token)} image tokens, {pictures} pictures",
                allowed="one image token for each picture, or none at all",
            )
        return [one for token in ids for one in [token] * (self._image_tokens if token == self._image_token else 1)]

    def _count_start(self, ids: list[int]) -> int:
        """How many ids stand before every text, as they do before an empty one."""
        pairs = zip(ids, self.tokenizer.encode(""), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def stream(
        self,
        prompt: str,
        images: Sequence[str | Path | Array],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer to one prompt about some pictures, in pieces as they are decided."""
        steps = self.stream_tokens(
            prompt, images, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        return self.tokenizer.decode_stream(steps)

    def stream_tokens(
        self,
        prompt: str,
        images: Sequence[str | Path | Array],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[int]:
        """`stream`, as ids.

        Raises:
            InputError: a file is no picture; prompt, pictures and answer do not fit the cache.
        """
        ids = self.encode(prompt, len(images))
        steps = self._decoder.generate(
            [ids],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            end_tokens=self._end_tokens,
            given={"image_embeddings": self._embed_row(images)},
        )
        return (step[0] for step in steps if step[0] is not None)

    def _embed_row(self, images: Sequence[str | Path | Array]) -> Array:
        """[1, pictures * N, C]; without pictures one of zeros, which no token reads."""
        if images:
            embeddings = self.embed(images)
            row: Array = embeddings.reshape(1, -1, embeddings.shape[2])
            return row
        width = next(t for t in self._projector.graph.outputs if t.name == "image_embeddings").shape[2]
        return np.zeros((1, self._image_tokens, int(width)), np.float32)

    def answer(self, request: Request) -> Answer:
        pieces = self.stream_answer(request)
        if pieces is None:
            raise InputError(
                "this bundle takes one prompt, and pictures that it is about",
                got=f"{len(request.files)} files, {len(request.prompts)} prompts",
                fix="metagen-deploy run BUNDLE FILE ... --prompt TEXT",
            )
        return Answer(header=("prompt", "answer"), rows=((request.prompts[0], "".join(pieces)),))

    def stream_answer(self, request: Request) -> Iterator[str] | None:
        if len(request.prompts) != 1:
            return None
        return self.stream(
            request.prompts[0],
            request.files,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_k=0 if request.temperature == 0 else request.top_k,
            seed=request.seed,
        )
