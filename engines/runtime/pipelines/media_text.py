"""Pictures, films or sounds and a prompt in, text out; each of the media may be missing, and the prompt too.

    medium -> encoder -> resampler -> N embeddings;  prompt -> ids, N media tokens for each medium -> decoder

Where the prompt's text has media tokens, each stands for one medium in the order in which they were handed over. Where
it has none, the media stand before it, sounds first, behind what begins every text.
Letters: B batch, N tokens of a medium, C width of the decoder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.cached_decoder import CachedDecoder
from engines.runtime.pipelines.stages.media import name_kind, open_media
from engines.runtime.pipelines.stages.sampling import Sampling
from engines.runtime.request import Answer, Request
from engines.runtime.text.tokenizers import list_end_tokens, make_tokenizer
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession
    from engines.runtime.pipelines.stages.media import Source


@final
class MediaToText(Pipeline):
    """Encoders and resamplers of media, and a decoder with a cache."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._media = open_media(config, graphs)
        self._decoder = CachedDecoder(config, graphs, given=("media_embeddings",))
        self._media_token = take_field(config, "media_token", int, least=0)
        tokenizer: dict[str, object] = take_field(config, "tokenizer", dict)
        self.tokenizer = make_tokenizer(folder, manifest, tokenizer)
        self._end_tokens = list_end_tokens(tokenizer)

    def embed(self, media: Sequence[Source]) -> list[Array]:
        """Media as the decoder reads them, each [N, C].

        Raises:
            InputError: a file is damaged, or of a kind that this bundle does not read.
        """
        return [self._media[name_kind(source, tuple(self._media))].embed(source) for source in media]

    def stream(
        self,
        prompt: str,
        media: Sequence[Source] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer to one prompt about some media, in pieces as they are decided. Arguments: `stream_tokens`."""
        steps = self.stream_tokens(
            prompt, media, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        return self.tokenizer.decode_stream(steps)

    def stream_tokens(
        self,
        prompt: str,
        media: Sequence[Source] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[int]:
        """`stream`, as ids.

        Args:
            prompt: may be empty where there is a medium: a model of captions then begins its own.
            media: files, folders or arrays, see `engines.runtime.pipelines.stages.media`.

        Raises:
            InputError: a file cannot be read; prompt, media and answer do not fit the cache.
        """
        ids, order = self._place(self.tokenizer.encode(prompt), [self._kind_of(source) for source in media])
        embeddings = self.embed([media[index] for index in order])
        given = np.concatenate(embeddings)[None] if embeddings else self._make_nothing()
        steps = self._decoder.generate(
            [ids],
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, seed=seed),
            end_tokens=self._end_tokens,
            given={"media_embeddings": given},
        )
        return (step[0] for step in steps if step[0] is not None)

    def answer(self, request: Request) -> Answer | None:
        pieces = self.stream_answer(request)
        if pieces is None:
            kinds = " or ".join(f"{kind}s" for kind in self._media)
            raise InputError(
                f"this bundle takes {kinds}, and one prompt about them",
                got=f"{len(request.files)} files, {len(request.prompts)} prompts",
                fix="metagen-deploy run BUNDLE FILE ... --prompt TEXT",
            )
        return Answer(header=("prompt", "answer"), rows=((" ".join(request.prompts), "".join(pieces)),))

    def stream_answer(self, request: Request) -> Iterator[str] | None:
        tensors = any(file.lower().endswith(".npz") for file in request.files)
        if tensors or len(request.prompts) > 1 or not (request.prompts or request.files):
            return None
        return self.stream(
            "".join(request.prompts),
            request.files,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            seed=request.seed,
        )

    def _kind_of(self, source: Source) -> str:
        return name_kind(source, tuple(self._media))

    def _place(self, ids: list[int], kinds: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids with N media tokens for each medium, and the order in which these take the media."""
        order = list(range(len(kinds)))
        if self._media_token not in ids:
            ranks = list(self._media)
            order.sort(key=lambda index: ranks.index(kinds[index]))
            start = self._count_start(ids)
            ids = [*ids[:start], *[self._media_token] * len(kinds), *ids[start:]]
        if ids.count(self._media_token) != len(kinds):
            raise InputError(
                "the prompt speaks of another number of media than were handed over",
                got=f"{ids.count(self._media_token)} media tokens, {len(kinds)} media",
                allowed="one media token for each of them, or none at all",
                fix="take the media tokens out of the prompt, or hand over as many files",
            )
        counts = iter([self._media[kinds[index]].tokens for index in order])
        return [one for token in ids for one in [token] * (next(counts) if token == self._media_token else 1)], order

    def _count_start(self, ids: list[int]) -> int:
        """How many ids stand before every text, as they do before an empty one."""
        pairs = zip(ids, self.tokenizer.encode(""), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _make_nothing(self) -> Array:
        """Zeros that no token reads."""
        return next(iter(self._media.values())).make_nothing()
