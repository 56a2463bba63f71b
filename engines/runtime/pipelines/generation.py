"""Prompts in, text out: a tokenizer around a decoder with a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from engines.runtime.fields import take_field
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.cached_decoder import DEFAULT_NEW_TOKENS, CachedDecoder
from engines.runtime.pipelines.stages.sampling import Sampling
from engines.runtime.request import Answer, Request, require
from engines.runtime.text.chat import has_chat_template, render_chat
from engines.runtime.text.tokenizers import list_end_tokens, make_tokenizer
from specs.bundle import Manifest

if TYPE_CHECKING:
    from engines.runtime.graph_session import GraphSession

__all__ = ["DEFAULT_NEW_TOKENS", "TextGeneration"]


@final
class TextGeneration(Pipeline):
    """A decoder with a cache. Greedy by default; with a temperature, seeded sampling among the `top_k` likeliest."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._decoder = CachedDecoder(config, graphs)
        self._described: dict[str, object] = take_field(config, "tokenizer", dict)
        self.tokenizer = make_tokenizer(folder, manifest, self._described)
        self._end_tokens = list_end_tokens(self._described)

    def encode(self, prompt: str, *, chat: bool = False) -> list[int]:
        """Ids of a prompt, as it is, or put into the model's chat template.

        Raises:
            InputError: there is no template, or it does not take the prompt.
        """
        if chat:
            return self.tokenizer.encode_whole(render_chat(self._described, prompt))
        return self.tokenizer.encode(prompt)

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint says how a conversation is written."""
        return has_chat_template(self._described)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        end_token: int | None = None,
        chat: bool = False,
    ) -> list[str]:
        """The continuation of each prompt, all in one batch; with `chat` the answer to each."""
        sampling = Sampling(temperature=temperature, top_k=top_k, seed=seed)
        ids = [self.encode(prompt, chat=chat) for prompt in prompts]
        steps = self._step(ids, max_new_tokens, sampling, end_token)
        rows = zip(*steps, strict=True)
        return [self.tokenizer.decode_words(token for token in row if token is not None) for row in rows]

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        end_token: int | None = None,
        chat: bool = False,
    ) -> Iterator[str]:
        """The continuation of one prompt (with `chat` the answer to it), in pieces as they are decided."""
        sampling = Sampling(temperature=temperature, top_k=top_k, seed=seed)
        steps = self._step([self.encode(prompt, chat=chat)], max_new_tokens, sampling, end_token)
        return self.tokenizer.decode_stream(step[0] for step in steps if step[0] is not None)

    def stream_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        end_token: int | None = None,
    ) -> Iterator[tuple[int | None, ...]]:
        """One tuple a step: the next id of each prompt, or None where an end token has come before.

        Args:
            prompts: ids of each prompt; lengths may differ.
            max_new_tokens: stop after so many steps, or when every prompt has ended; when absent, after
                DEFAULT_NEW_TOKENS or as many as the cache has room for.
            temperature: 0 takes the likeliest token; above, scores are divided by it and a token is drawn.
            top_k: draw among so many of the likeliest; 0 for all.
            seed: of the draws; the same seed gives the same tokens on the same backend.
            end_token: id that ends a prompt (it is yielded); by default any of those that the bundle names.

        Raises:
            InputError: an empty prompt, an id outside the vocabulary, or more tokens than the cache holds.
        """
        return self._step(prompts, max_new_tokens, Sampling(temperature=temperature, top_k=top_k, seed=seed), end_token)

    def _step(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int | None, sampling: Sampling, end_token: int | None
    ) -> Iterator[tuple[int | None, ...]]:
        end_tokens = self._end_tokens if end_token is None else (end_token,)
        return self._decoder.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling, end_tokens=end_tokens)

    def answer(self, request: Request) -> Answer:
        require(request, "a prompt", prompts=True)
        texts = self.generate(
            request.prompts,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            seed=request.seed,
            chat=request.chat,
        )
        return Answer(header=("prompt", "continuation"), rows=tuple(zip(request.prompts, texts, strict=True)))

    def stream_answer(self, request: Request) -> Iterator[str] | None:
        if len(request.prompts) != 1 or request.files:
            return None
        return self.stream(request.prompts[0], chat=request.chat)
