"""A decoder with a cache: prefill once, then one decode step a token.

    prefill(token_ids [B, T], lengths [B], given, shared)     -> logits [B, V], keys_i, values_i [B, K, T, D]
    decode(token_ids [B, 1], lengths [B], past_*, shared)     -> logits [B, V], keys_i, values_i [B, K, S, D]

Prompts of a batch may differ in length: they are padded on the right, and a row's cache is overwritten from its own
length on. Letters: B batch, T prompt tokens, S cache slots, K kv-heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.stages.caches import choose_kept, fit_cache, get_axis_range, take_cache_names
from engines.runtime.pipelines.stages.sampling import Sampler, Sampling
from engines.runtime.text.tokenizers import require_known_ids
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

DEFAULT_NEW_TOKENS = 64
_UNLIMITED = 1 << 20  # slots, where only the graph limits a cache


@final
class CachedDecoder:
    """The two graphs of a decoder, and the loop over them.

    Args:
        config: a manifest's `pipeline`.
        given: inputs of prefill beside the token ids and their lengths.
        shared: inputs of prefill and of every decode step: what an encoder made, once, of something else.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        graphs: Mapping[str, GraphSession],
        *,
        given: Sequence[str] = (),
        shared: Sequence[str] = (),
    ) -> None:
        self._present = take_cache_names(config)
        ids, outputs = ["token_ids", "lengths"], ["logits", *self._present]
        past = [f"past_{name}" for name in self._present]
        self._prefill = take_graph(config, "prefill", graphs, inputs=[*ids, *given, *shared], outputs=outputs)
        self._decode = take_graph(config, "decode", graphs, inputs=[*ids, *past, *shared], outputs=outputs)
        self._kept = choose_kept(self._present, self._decode)
        self.vocab_size = take_field(config, "vocab_size", int)
        self._max_cache = take_field(config, "max_cache", int, _UNLIMITED)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None,
        end_tokens: Sequence[int],
        sampling: Sampling,
        given: Mapping[str, Array] | None = None,
        shared: Mapping[str, Array] | None = None,
        banned: Sequence[int] = (),
        banned_first: Sequence[int] = (),
    ) -> Iterator[tuple[int | None, ...]]:
        """One tuple a step: the next id of each prompt, or None where one of its `end_tokens` has come before.

        Args:
            sampling: how each token is chosen.
            given, shared: arrays for the inputs that were named when this was made.
            banned, banned_first: ids that are never chosen, and that are not chosen first.

        Raises:
            InputError: an empty prompt, an id outside the vocabulary, or more tokens than the cache holds.
        """
        room = self.slots + 1 - max((len(prompt) for prompt in prompts), default=0)
        if max_new_tokens is None:
            max_new_tokens = max(1, min(DEFAULT_NEW_TOKENS, room))
        self._check_request(prompts, max_new_tokens)
        sampler = Sampler(sampling, banned=banned, banned_first=banned_first)
        return self._run(prompts, given or {}, shared or {}, max_new_tokens, sampler, end_tokens)

    def read(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Array]) -> dict[str, Array]:
        """Prefill alone: the logits [B, V] after each prompt, and its keys and values."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        feed = {"token_ids": self._pad_prompts(prompts), "lengths": lengths, **given}
        return self._prefill.run(feed, keep=())  # its cache is about to be given more slots

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        given: Mapping[str, Array],
        shared: Mapping[str, Array],
        max_new_tokens: int,
        sampler: Sampler,
        end_tokens: Sequence[int],
    ) -> Iterator[tuple[int | None, ...]]:
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        results = self.read(prompts, {**given, **shared})
        alive = np.ones(len(prompts), bool)
        for step in range(max_new_tokens):
            tokens = sampler.choose(results["logits"])
            yield tuple(int(token) if going else None for token, going in zip(tokens, alive, strict=True))
            alive &= ~np.isin(tokens, end_tokens)
            if not alive.any() or step == max_new_tokens - 1:
                return
            low, high = self._get_range(self._decode, "past_keys_0", 2)
            cache = fit_cache(results, self._present, self._decode, slots=int(lengths.max()) + 1, low=low, high=high)
            feed = {"token_ids": tokens[:, None], "lengths": lengths, **cache, **shared}
            results = self._decode.run(feed, keep=self._kept)
            lengths = lengths + alive  # a row that has ended overwrites one slot for ever

    def _pad_prompts(self, prompts: Sequence[Sequence[int]]) -> Array:
        low, _ = self._get_range(self._prefill, "token_ids", 1)
        token_ids = np.zeros((len(prompts), max(low, *(len(prompt) for prompt in prompts))), np.int64)
        for row, prompt in zip(token_ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        return token_ids

    def choose_kept(self, shared: Sequence[str]) -> Sequence[str]:
        """What of `shared` its maker may leave on the GPU, since both graphs take it there."""
        return choose_kept(shared, self._prefill, self._decode)

    @property
    def slots(self) -> int:
        """Tokens that the cache can hold."""
        return self._get_range(self._decode, "past_keys_0", 2)[1]

    def _get_range(self, graph: GraphSession, tensor: str, axis: int) -> tuple[int, int]:
        """Smallest and largest size of a tensor's axis, at most `max_cache`."""
        low, high = get_axis_range(graph, tensor, axis)
        return low, min(high or self._max_cache, self._max_cache)

    def _check_request(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError("a prompt is empty", allowed="one token or more", fix="start it with any text")
        for prompt in prompts:
            require_known_ids(prompt, self.vocab_size)
        if max_new_tokens < 1:
            raise InputError(
                "these settings generate nothing",
                got=f"max_new_tokens {max_new_tokens}",
                allowed="max_new_tokens from 1",
                fix="correct these settings",
            )
        longest, slots = max(len(prompt) for prompt in prompts), self.slots
        if longest + max_new_tokens - 1 > slots:
            raise InputError(
                "the prompt and the new tokens do not fit the cache",
                got=f"{longest} + {max_new_tokens} tokens",
                allowed=f"{slots + 1} together",
                fix=f"ask for at most {slots + 1 - longest} new tokens, or shorten the prompt"
                if longest <= slots
                else "shorten the prompt, or export with a larger `cache`",
            )
