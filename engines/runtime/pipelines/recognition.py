"""Sounds in, transcripts out, by an encoder and a decoder: Whisper.

    encoder(samples [B, L])                                  -> encoder_states [B, N, C]
    cross(encoder_states)                                    -> cross_keys_i, cross_values_i [B, H, N, D], once a chunk
    prefill(token_ids [B, T], lengths [B], cross_*)          -> logits [B, V], keys_i, values_i [B, H, T, D]
    decode(token_ids [B, 1], lengths [B], past_*, cross_*)   -> logits [B, V], keys_i, values_i [B, H, S, D]

A sound is cut into consecutive chunks of L samples, the last one filled with silence. Each is transcribed by itself,
greedily and without timestamps, and the texts are joined: a word that lies across a border may be lost or doubled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph, take_ids, take_named_ids
from engines.runtime.media.sound import load_sound
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import get_batch_range, pad_rows
from engines.runtime.pipelines.stages.cached_decoder import CachedDecoder
from engines.runtime.pipelines.stages.caches import take_cache_names
from engines.runtime.pipelines.stages.sampling import Sampling
from engines.runtime.request import Answer, Request, require
from engines.runtime.text.tokenizers import Tokenizer, make_tokenizer
from specs.bundle import Manifest
from specs.errors import BundleError, InputError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class SpeechRecognition(Pipeline):
    """Four graphs, of which three are the decoder's."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        cross, states = [f"cross_{name}" for name in take_cache_names(config)], ("encoder_states",)
        self._encoder = take_graph(config, "encoder", graphs, inputs=("samples",), outputs=states)
        self._cross_names, self._cross = cross, take_graph(config, "cross", graphs, inputs=states, outputs=cross)
        self._decoder = CachedDecoder(config, graphs, shared=cross)
        self.sample_rate = take_field(config, "sample_rate", int)
        self.num_samples = take_field(config, "num_samples", int)
        words = self._decoder.vocab_size
        self._start_token = take_field(config, "start_token", int, 0, least=0)
        self._detects_language = take_field(config, "detect_language", bool, False)
        self._prompt_tokens, self._end_tokens, self._banned, self._banned_first = (
            take_ids(config, key, below=words)
            for key in ("prompt_tokens", "end_tokens", "suppress_tokens", "begin_suppress_tokens")
        )
        self._languages = take_named_ids(config, "language_tokens", below=words)
        self._tasks = take_named_ids(config, "task_tokens", below=words)
        if self._detects_language and not self._languages:
            raise BundleError(
                "manifest: pipeline.language_tokens is empty, and the language is to be heard",
                fix="export the bundle again",
            )
        last, usual = config.get("no_timestamps_token"), config.get("max_new_tokens")
        self._no_timestamps = None if last is None else take_field(config, "no_timestamps_token", int, least=0)
        self._max_new_tokens = None if usual is None else take_field(config, "max_new_tokens", int)
        tokenizer: dict[str, object] = take_field(config, "tokenizer", dict)
        has_text = tokenizer.get("kind") != "ids"
        self.tokenizer: Tokenizer | None = make_tokenizer(folder, manifest, tokenizer) if has_text else None

    def answer(self, request: Request) -> Answer:
        require(request, "sounds", files=True)
        texts = self.transcribe(request.files, max_new_tokens=request.max_new_tokens)
        return Answer(header=("sound", "transcript"), rows=tuple(zip(request.files, texts, strict=True)))

    def transcribe(
        self,
        sounds: Sequence[str | Path | Array],
        *,
        language: str | None = None,
        task: str | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """What is said in each sound.

        Args:
            sounds: .wav files of any rate, or samples at `sample_rate`; see `load_sound`.
            language: a code as in the model's vocabulary, "fr" or "<|fr|>"; what the model was saved with when absent,
                which for most is the language that it hears in the first chunk.
            task: "transcribe" or "translate" (into English), where the model knows both.
            max_new_tokens: of each chunk; what the model was saved with when absent, at most as many as the decoder has
                positions for.

        Raises:
            InputError: no sound, one that cannot be read, or a language or task that the model does not know.
        """
        loaded = [load_sound(sound, sample_rate=self.sample_rate) for sound in sounds]
        chunks = [self.split_sound(samples) for samples in loaded]
        if not chunks:
            raise InputError(
                "there is nothing to transcribe",
                allowed="one sound or more",
                fix="hand over a sound",
            )
        owners = np.repeat(np.arange(len(chunks)), [len(rows) for rows in chunks])
        prompt = self._choose_prompt(language, task)
        tokens = self._transcribe_chunks(np.concatenate(chunks), owners, prompt, max_new_tokens)
        pieces: list[list[str]] = [[] for _ in chunks]
        for owner, row in zip(owners, tokens, strict=True):
            pieces[owner].append(self.spell(row))
        return [" ".join(filter(None, (piece.strip() for piece in row))) for row in pieces]

    def split_sound(self, samples: Array) -> Array:
        """Samples [N] -> chunks [B, L], the last one filled with silence."""
        count = max(1, -(-len(samples) // self.num_samples))
        return np.pad(samples, (0, count * self.num_samples - len(samples))).reshape(count, self.num_samples)

    def spell(self, tokens: Sequence[int]) -> str:
        """The text of a chunk's tokens; bare ids where the bundle has no tokenizer."""
        last = self._no_timestamps
        said = [token for token in tokens if last is None or token <= last]
        return " ".join(map(str, said)) if self.tokenizer is None else self.tokenizer.decode_words(said)

    def transcribe_tokens(
        self, samples: Array, *, language: str | None = None, task: str | None = None, max_new_tokens: int | None = None
    ) -> list[list[int]]:
        """Chunks [B, L] -> the tokens of each, without the prompt and the end."""
        prompt = self._choose_prompt(language, task)
        return self._transcribe_chunks(samples, np.arange(len(samples)), prompt, max_new_tokens)

    def _choose_prompt(self, language: str | None, task: str | None) -> list[int | None]:
        """The tokens before the text; None where the language is to be heard first."""
        languages, tasks = self._languages, self._tasks
        if language is None and task is None:
            return [self._start_token, *([None] if self._detects_language else []), *self._prompt_tokens]
        if task is not None and task not in tasks:
            raise InputError(
                f"the model has no task '{task}'",
                allowed=name_nearest(task, tasks) or "none",
                fix="choose one of these, or leave it away",
            )
        token = None if language is None else languages.get(language, languages.get(f"<|{language}|>"))
        if (language is not None and token is None) or not languages:
            raise InputError(
                f"the model has no language '{language}'" if languages else "the model knows one language only",
                allowed=", ".join(name.strip("<|>") for name in languages) or "neither language nor task",
                fix="choose one of these, or leave it away",
            )
        what = [tasks[task or "transcribe"]] if task or "transcribe" in tasks else []
        return [self._start_token, token, *what, *([] if self._no_timestamps is None else [self._no_timestamps])]

    def _transcribe_chunks(
        self, samples: Array, owners: Array, prompt: Sequence[int | None], max_new_tokens: int | None
    ) -> list[list[int]]:
        most = self._limit_tokens(len(prompt), max_new_tokens)
        low, high = get_batch_range(self._encoder)
        step = len(samples) if high is None else high
        heard: dict[int, int] = {}  # sound -> token of the language of its first chunk
        found: list[list[int]] = []
        for start in range(0, len(samples), step):
            rows, block = owners[start : start + step], samples[start : start + step].astype(np.float32, copy=False)
            states = self._encoder.run({"samples": pad_rows(block, low)}, check_finite=True)
            cross = self._cross.run(states, keep=self._decoder.choose_kept(self._cross_names))
            prompts = pad_rows(self._fill_prompts(prompt, rows, cross, heard), low)
            found += self._generate(prompts, cross, most)[: len(rows)]
        return found

    def _fill_prompts(
        self, prompt: Sequence[int | None], owners: Array, cross: Mapping[str, Array], heard: dict[int, int]
    ) -> Array:
        """One row of ids a chunk; the language is heard in each sound's first chunk."""
        filled = np.array([[0 if token is None else token for token in prompt]] * len(owners), np.int64)
        if None in prompt:
            place = prompt.index(None)
            if not all(int(owner) in heard for owner in owners):
                rows = next(iter(cross.values())).shape[0]
                logits = self._decoder.read([filled[0, :place].tolist()] * rows, cross)["logits"]
                languages = np.array(sorted(self._languages.values()))
                best = languages[logits[:, languages].argmax(axis=1)]
                for owner, token in zip(owners, best, strict=False):
                    heard.setdefault(int(owner), int(token))
            filled[:, place] = [heard[int(owner)] for owner in owners]
        return filled

    def _generate(self, prompts: Array, cross: Mapping[str, Array], most: int) -> list[list[int]]:
        """Greedy tokens of each row up to its end token, which is left out."""
        steps = self._decoder.generate(
            prompts.tolist(),
            max_new_tokens=most,
            sampling=Sampling(),
            end_tokens=self._end_tokens,
            shared=cross,
            banned=self._banned,
            banned_first=self._banned_first,
        )
        ended = {None, *self._end_tokens}
        return [[token for token in row if token not in ended] for row in zip(*steps, strict=True)]

    def _limit_tokens(self, prompt_size: int, max_new_tokens: int | None) -> int:
        """Tokens of one chunk: prompt and text share the decoder's positions."""
        room = max(1, self._decoder.slots - prompt_size)
        if max_new_tokens is not None and not 1 <= max_new_tokens <= room:
            raise InputError(
                "so many tokens do not fit the decoder",
                got=f"max_new_tokens {max_new_tokens}",
                allowed=f"1 to {room}",
                fix="ask for fewer; longer sounds are cut into pieces anyway",
            )
        return max_new_tokens or min(room, self._max_new_tokens or room)
