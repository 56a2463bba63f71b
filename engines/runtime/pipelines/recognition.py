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

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.batching import get_batch_range, pad_rows
from engines.runtime.request import Answer, Request, require
from engines.runtime.sound import load_sound
from engines.runtime.text import Tokenizer, make_tokenizer
from specs.bundle import Manifest
from specs.errors import InputError, ParityError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

_SMALLEST_CACHE = 32  # slots


@final
class SpeechRecognition(Pipeline):
    """Four graphs, of which three are the decoder's."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        pairs = [f"{kind}_{i}" for i in range(take_field(config, "num_layers", int)) for kind in ("keys", "values")]
        self._own, self._cross_names = pairs, [f"cross_{name}" for name in pairs]
        past, ids, outputs = [f"past_{name}" for name in pairs], ["token_ids", "lengths"], ["logits", *pairs]
        states = ("encoder_states",)
        self._encoder = take_graph(config, "encoder", graphs, inputs=("samples",), outputs=states)
        self._cross = take_graph(config, "cross", graphs, inputs=states, outputs=self._cross_names)
        self._prefill = take_graph(config, "prefill", graphs, inputs=[*ids, *self._cross_names], outputs=outputs)
        self._decode = take_graph(config, "decode", graphs, inputs=[*ids, *past, *self._cross_names], outputs=outputs)
        self.sample_rate = take_field(config, "sample_rate", int)
        self.num_samples = take_field(config, "num_samples", int)
        self._config = config
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
            raise InputError("there is nothing to transcribe", allowed="one sound or more")
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
        last = self._config.get("no_timestamps_token")
        said = [token for token in tokens if not (isinstance(last, int) and token > last)]
        return " ".join(map(str, said)) if self.tokenizer is None else self.tokenizer.decode_words(said)

    def transcribe_tokens(
        self, samples: Array, *, language: str | None = None, task: str | None = None, max_new_tokens: int | None = None
    ) -> list[list[int]]:
        """Chunks [B, L] -> the tokens of each, without the prompt and the end."""
        prompt = self._choose_prompt(language, task)
        return self._transcribe_chunks(samples, np.arange(len(samples)), prompt, max_new_tokens)

    def _choose_prompt(self, language: str | None, task: str | None) -> list[int | None]:
        """The tokens before the text; None where the language is to be heard first."""
        config = self._config
        start, detects = config.get("start_token", 0), bool(config.get("detect_language"))
        usual = list(config.get("prompt_tokens", []))
        if language is None and task is None:
            return [start, *([None] if detects else []), *usual]
        languages, tasks = config.get("language_tokens", {}), config.get("task_tokens", {})
        if task is not None and task not in tasks:
            raise InputError(f"the model has no task '{task}'", allowed=name_nearest(task, tasks) or "none")
        token = None if language is None else languages.get(language, languages.get(f"<|{language}|>"))
        if (language is not None and token is None) or not languages:
            raise InputError(
                f"the model has no language '{language}'" if languages else "the model knows one language only",
                allowed=", ".join(name.strip("<|>") for name in languages) or "neither language nor task",
            )
        what = [tasks[task or "transcribe"]] if task or "transcribe" in tasks else []
        last = config.get("no_timestamps_token")
        return [start, token, *what, *([last] if last is not None else [])]

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
            cross = self._cross.run(states)
            prompts = self._fill_prompts(prompt, rows, cross, heard)
            found += self._generate(pad_rows(prompts, low), cross, most)[: len(rows)]
        return found

    def _fill_prompts(
        self, prompt: Sequence[int | None], owners: Array, cross: Mapping[str, Array], heard: dict[int, int]
    ) -> Array:
        """One row of ids a chunk; the language is heard in each sound's first chunk."""
        filled = np.array([[0 if token is None else token for token in prompt]] * len(owners), np.int64)
        if None in prompt:
            place = prompt.index(None)
            if not all(int(owner) in heard for owner in owners):
                rows = len(next(iter(cross.values())))
                logits = self._read_prompt(np.repeat(filled[:1, :place], rows, axis=0), cross)["logits"]
                languages = np.array(sorted(self._config["language_tokens"].values()))
                best = languages[logits[:, languages].argmax(axis=1)]
                for owner, token in zip(owners, best, strict=False):
                    heard.setdefault(int(owner), int(token))
            filled[:, place] = [heard[int(owner)] for owner in owners]
        return filled

    def _read_prompt(self, token_ids: Array, cross: Mapping[str, Array]) -> dict[str, Array]:
        low, _ = self._get_range(self._prefill, "token_ids", 1)
        lengths = np.full(len(token_ids), token_ids.shape[1], np.int64)
        padded = np.pad(token_ids, ((0, 0), (0, max(0, low - token_ids.shape[1]))))
        return self._prefill.run({"token_ids": padded, "lengths": lengths, **cross})

    def _generate(self, prompts: Array, cross: Mapping[str, Array], most: int) -> list[list[int]]:
        """Greedy tokens of each row up to its end token, which is left out."""
        ends = np.array(self._config.get("end_tokens", []), np.int64)
        lengths = np.full(len(prompts), prompts.shape[1], np.int64)
        rows: list[list[int]] = [[] for _ in prompts]
        alive = np.ones(len(prompts), bool)
        results = self._read_prompt(prompts, cross)
        for step in range(most):
            tokens = self._choose(results["logits"], first=step == 0)
            alive &= ~np.isin(tokens, ends)
            for row, token, going in zip(rows, tokens, alive, strict=True):
                if going:
                    row.append(int(token))
            if not alive.any() or step == most - 1:
                break
            past = self._fit_cache(results, int(lengths[0]) + 1)
            results = self._decode.run({"token_ids": tokens[:, None], "lengths": lengths, **past, **cross})
            lengths = lengths + 1
        return rows

    def _choose(self, logits: Array, *, first: bool) -> Array:
        banned = [*self._config.get("suppress_tokens", []), *(self._config.get("begin_suppress_tokens", []) * first)]
        if not np.isfinite(logits).all():
            raise ParityError(
                "the decoder's logits are not finite",
                fix="metagen-deploy check BUNDLE names the first tensor that is wrong",
            )
        scores = logits.copy()
        scores[:, banned] = -np.inf
        tokens: Array = scores.argmax(axis=1)
        return tokens

    def _fit_cache(self, results: Mapping[str, Array], slots: int) -> dict[str, Array]:
        """The last step's keys and values as the next one's past, with room for at least `slots` tokens."""
        low, high = self._get_range(self._decode, "past_keys_0", 2)
        capacity: int = results[self._own[0]].shape[2]
        if not max(slots, low) <= capacity <= high:
            capacity = max(low, min(1 << max(slots - 1, _SMALLEST_CACHE - 1).bit_length(), high))
        past = {}
        for name in self._own:
            present = results[name][:, :, :capacity]
            padding = ((0, 0), (0, 0), (0, capacity - present.shape[2]), (0, 0))
            past[f"past_{name}"] = np.pad(present, padding) if padding[2][1] else np.ascontiguousarray(present)
        return past

    def _limit_tokens(self, prompt_size: int, max_new_tokens: int | None) -> int:
        """Tokens of one chunk: prompt and text share the decoder's positions."""
        room = max(1, self._get_range(self._decode, "past_keys_0", 2)[1] - prompt_size)
        usual = self._config.get("max_new_tokens")
        if max_new_tokens is not None and not 1 <= max_new_tokens <= room:
            raise InputError(
                "so many tokens do not fit the decoder", got=f"max_new_tokens {max_new_tokens}", allowed=f"1 to {room}"
            )
        return max_new_tokens or min(room, usual if isinstance(usual, int) else room)

    def _get_range(self, graph: GraphSession, tensor: str, axis: int) -> tuple[int, int]:
        """Smallest and largest size of a tensor's axis."""
        size = next(t for t in graph.graph.inputs if t.name == tensor).shape[axis]
        if isinstance(size, int):
            return size, size
        low, _, high = graph.dims[size]
        return low, high
