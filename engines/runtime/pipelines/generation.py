"""Prompts in, tokens out: prefill once, then one decode step a token over a key and value cache.

    prefill(token_ids [B, T], lengths [B])          -> logits [B, V], keys_i, values_i [B, K, T, D]
    decode(token_ids [B, 1], lengths [B], past_*)   -> logits [B, V], keys_i, values_i [B, K, S, D]

Prompts of a batch may differ in length: they are padded on the right, and a row's cache is overwritten from its own
length on. S is a power of two that doubles when a row needs more; between doublings a step's cache goes into the next
step as it came out, without a copy on this side. Letters: B batch, T prompt tokens, S cache slots, K kv-heads,
D head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.batching import softmax
from engines.runtime.request import Answer, Request, require
from engines.runtime.text import make_tokenizer
from specs.bundle import Manifest
from specs.errors import InputError, ParityError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

DEFAULT_NEW_TOKENS = 64
_SMALLEST_CACHE = 32  # slots


@final
class TextGeneration(Pipeline):
    """A decoder with a cache. Greedy by default; with a temperature, seeded sampling among the `top_k` likeliest."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        layers = range(take_field(config, "num_layers", int))
        self._present = [f"{kind}_{layer}" for layer in layers for kind in ("keys", "values")]
        ids, outputs = ["token_ids", "lengths"], ["logits", *self._present]
        past = [f"past_{name}" for name in self._present]
        self._prefill = take_graph(config, "prefill", graphs, inputs=ids, outputs=outputs)
        self._decode = take_graph(config, "decode", graphs, inputs=[*ids, *past], outputs=outputs)
        self._vocab_size = take_field(config, "vocab_size", int)
        self._max_cache = take_field(config, "max_cache", int)
        tokenizer: dict[str, object] = take_field(config, "tokenizer", dict)
        self.tokenizer = make_tokenizer(folder, manifest, tokenizer)
        self._end_token = tokenizer.get("end_of_text")

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        end_token: int | None = None,
    ) -> list[str]:
        """The continuation of each prompt, all in one batch."""
        steps = self.stream_tokens(
            [self.tokenizer.encode(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            end_token=end_token,
        )
        rows = zip(*steps, strict=True)
        return [self.tokenizer.decode(token for token in row if token is not None) for row in rows]

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        end_token: int | None = None,
    ) -> Iterator[str]:
        """The continuation of one prompt, in pieces as they are decided."""
        steps = self.stream_tokens(
            [self.tokenizer.encode(prompt)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            end_token=end_token,
        )
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
        """One tuple a step: the next id of each prompt, or None where its end token has come before.

        Args:
            prompts: ids of each prompt; lengths may differ.
            max_new_tokens: stop after so many steps, or when every prompt has ended; when absent, after
                DEFAULT_NEW_TOKENS or as many as the cache has room for.
            temperature: 0 takes the likeliest token; above, scores are divided by it and a token is drawn.
            top_k: draw among so many of the likeliest; 0 for all.
            seed: of the draws; the same seed gives the same tokens on the same backend.
            end_token: id that ends a prompt (it is yielded); the tokenizer's end of text by default.

        Raises:
            InputError: an empty prompt, an id outside the vocabulary, or more tokens than the cache holds.
        """
        room = self._slots + 1 - max((len(prompt) for prompt in prompts), default=0)
        if max_new_tokens is None:
            max_new_tokens = max(1, min(DEFAULT_NEW_TOKENS, room))
        self._check_request(prompts, max_new_tokens, temperature, top_k)
        if end_token is None and isinstance(self._end_token, int):
            end_token = self._end_token
        sampler = _Sampler(temperature, top_k, seed)
        return self._generate(prompts, max_new_tokens, sampler, end_token)

    def answer(self, request: Request) -> Answer:
        require(request, "a prompt", prompts=True)
        texts = self.generate(
            request.prompts,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_k=0 if request.temperature == 0 else request.top_k,
            seed=request.seed,
        )
        return Answer(header=("prompt", "continuation"), rows=tuple(zip(request.prompts, texts, strict=True)))

    def stream_answer(self, request: Request) -> Iterator[str] | None:
        return self.stream(request.prompts[0]) if len(request.prompts) == 1 and not request.files else None

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampler: _Sampler, end_token: int | None
    ) -> Iterator[tuple[int | None, ...]]:
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        results = self._prefill.run({"token_ids": self._pad_prompts(prompts), "lengths": lengths})
        alive = np.ones(len(prompts), bool)
        for step in range(max_new_tokens):
            tokens = sampler.choose(results["logits"])
            yield tuple(int(token) if going else None for token, going in zip(tokens, alive, strict=True))
            alive &= tokens != (-1 if end_token is None else end_token)
            if not alive.any() or step == max_new_tokens - 1:
                return
            cache = self._fit_cache(results, int(lengths.max()) + 1)
            results = self._decode.run({"token_ids": tokens[:, None], "lengths": lengths, **cache})
            lengths = lengths + alive  # a row that has ended overwrites one slot for ever

    def _fit_cache(self, results: Mapping[str, Array], slots: int) -> dict[str, Array]:
        """The last step's keys and values as the next one's past, with room for at least `slots` tokens."""
        low, high = self._get_range(self._decode, "past_keys_0", 2)
        capacity: int = results[self._present[0]].shape[2]
        if not max(slots, low) <= capacity <= high:
            power = 1 << max(slots - 1, _SMALLEST_CACHE - 1).bit_length()
            capacity = max(low, min(power, high))
        return {f"past_{name}": _resize_cache(results[name], capacity) for name in self._present}

    def _pad_prompts(self, prompts: Sequence[Sequence[int]]) -> Array:
        low, _ = self._get_range(self._prefill, "token_ids", 1)
        token_ids = np.zeros((len(prompts), max(low, *(len(prompt) for prompt in prompts))), np.int64)
        for row, prompt in zip(token_ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        return token_ids

    @property
    def _slots(self) -> int:
        """Tokens that the cache can hold."""
        return self._get_range(self._decode, "past_keys_0", 2)[1]

    def _get_range(self, graph: GraphSession, tensor: str, axis: int) -> tuple[int, int]:
        """Smallest and largest size of a tensor's axis, at most `max_cache`."""
        size = next(t for t in graph.graph.inputs if t.name == tensor).shape[axis]
        if isinstance(size, int):
            return size, size
        low, _, high = graph.dims.get(size, (1, 1, self._max_cache))
        return low, min(high, self._max_cache)

    def _check_request(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, top_k: int
    ) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError("a prompt is empty", allowed="one token or more", fix="start it with any text")
        for prompt in prompts:
            for token in prompt:
                if not 0 <= token < self._vocab_size:
                    raise InputError(
                        "a token id is outside the vocabulary", got=str(token), allowed=f"0..{self._vocab_size - 1}"
                    )
        if max_new_tokens < 1 or not temperature >= 0 or top_k < 0:
            raise InputError(
                "these settings generate nothing",
                got=f"max_new_tokens {max_new_tokens}, temperature {temperature}, top_k {top_k}",
                allowed="max_new_tokens from 1, temperature and top_k from 0",
            )
        longest, slots = max(len(prompt) for prompt in prompts), self._slots
        if longest + max_new_tokens - 1 > slots:
            raise InputError(
                "the prompt and the new tokens do not fit the cache",
                got=f"{longest} + {max_new_tokens} tokens",
                allowed=f"{slots + 1} together",
                fix=f"ask for at most {slots + 1 - longest} new tokens, or shorten the prompt"
                if longest <= slots
                else "shorten the prompt, or export with a larger `cache`",
            )


class _Sampler:
    """Next tokens [B] from logits [B, V]."""

    def __init__(self, temperature: float, top_k: int, seed: int) -> None:
        self._temperature, self._top_k = temperature, top_k
        self._random = np.random.default_rng(seed)

    def choose(self, logits_BV: Array) -> Array:
        best = logits_BV.max(axis=1)
        if not np.isfinite(best).all():
            raise ParityError(
                "the decoder's logits are not finite",
                got=f"a largest logit of {best[~np.isfinite(best)][0]}",
                fix="metagen-deploy check BUNDLE names the first tensor that is wrong",
            )
        if self._temperature == 0:
            likeliest: Array = logits_BV.argmax(axis=1)
            return likeliest
        scores = (logits_BV.astype(np.float64) - best[:, None]) / self._temperature  # at most 0: cannot overflow
        if 0 < self._top_k < scores.shape[1]:
            bars = np.partition(scores, -self._top_k, axis=1)[:, -self._top_k, None]
            scores = np.where(scores >= bars, scores, -np.inf)
        shares = softmax(scores).cumsum(axis=1)
        draws = self._random.random(len(shares)) * shares[:, -1]
        return np.array([np.searchsorted(row, draw, side="right") for row, draw in zip(shares, draws, strict=True)])


def _resize_cache(present_BKSD: Array, slots: int) -> Array:
    """The same tensor with `slots` slots; new ones are zero, cut ones are padding."""
    if present_BKSD.shape[2] == slots:
        return present_BKSD
    batch, heads, held, width = present_BKSD.shape
    past = np.zeros((batch, heads, slots, width), present_BKSD.dtype)
    past[:, :, :held] = present_BKSD[:, :, :slots]
    return past
