"""Pictures, sounds and a prompt in, text out; any of the two may be missing.

    picture -> vision -> vision_resampler -> tokens;  sound -> audio -> audio_resampler -> tokens
    ids: one media token for each of theirs, sounds first, then pictures, then the text -> decoder

Letters: B batch, N tokens of a picture or sound, C width of the decoder.
"""

from __future__ import annotations

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
from engines.runtime.sound import load_sound
from engines.runtime.text import list_end_tokens, make_tokenizer
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

_SOUNDS = (".wav",)


@final
class MultimodalLlm(Pipeline):
    """Two encoders, two resamplers, and a decoder with a cache."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        image, audio = ("image_features",), ("audio_features",)
        self._vision = take_graph(config, "vision", graphs, inputs=("image",), outputs=image)
        self._audio = take_graph(config, "audio", graphs, inputs=("samples",), outputs=audio)
        tokens = ("image_tokens", "audio_tokens")
        self._vision_resampler = take_graph(config, "vision_resampler", graphs, inputs=image, outputs=tokens[:1])
        self._audio_resampler = take_graph(config, "audio_resampler", graphs, inputs=audio, outputs=tokens[1:])
        self._decoder = CachedDecoder(config, graphs, given=("media_embeddings",))
        self._size = take_image_size(config)
        self.sample_rate = take_field(config, "sample_rate", int)
        self.num_samples = take_field(config, "num_samples", int)
        self.media_token = take_field(config, "media_token", int)
        tokenizer: dict[str, object] = take_field(config, "tokenizer", dict)
        self.tokenizer = make_tokenizer(folder, manifest, tokenizer)
        self._end_tokens = list_end_tokens(tokenizer)

    def embed_images(self, images: Sequence[str | Path | Array]) -> Array:
        """Pictures as the decoder reads them, [images, N, C]; see `load_image` for what a picture may be."""
        pixels = np.concatenate([load_image(image, **self._size) for image in images])
        return run_rows(self._vision_resampler, run_rows(self._vision, {"image": pixels}))["image_tokens"]

    def embed_sounds(self, sounds: Sequence[str | Path | Array]) -> Array:
        """Sounds as the decoder reads them, [sounds, N, C]: what is longer than one chunk is an InputError."""
        rows = np.zeros((len(sounds), self.num_samples), np.float32)
        for row, sound in zip(rows, sounds, strict=True):
            samples = load_sound(sound, sample_rate=self.sample_rate)
            if len(samples) > self.num_samples:
                raise InputError(
                    "the sound is longer than the model hears at once",
                    where=str(sound) if isinstance(sound, (str, Path)) else None,
                    got=f"{len(samples) / self.sample_rate:.1f} s",
                    allowed=f"{self.num_samples / self.sample_rate:.1f} s",
                    fix="cut it",
                )
            row[: len(samples)] = samples
        return run_rows(self._audio_resampler, run_rows(self._audio, {"samples": rows}))["audio_tokens"]

    def stream_tokens(
        self,
        prompt: str,
        *,
        images: Sequence[str | Path | Array] = (),
        sounds: Sequence[str | Path | Array] = (),
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[int]:
        """The answer to a prompt about sounds and pictures, id by id.

        Raises:
            InputError: a file is no picture or sound; they, the prompt and the answer do not fit the cache.
        """
        media = self._embed(images, sounds)
        count = 0 if media is None else media.shape[1]
        ids = [token for token in self.tokenizer.encode(prompt) if token != self.media_token]
        steps = self._decoder.generate(
            [[self.media_token] * count + ids],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            end_tokens=self._end_tokens,
            given={"media_embeddings": self._make_nothing() if media is None else media},
        )
        return (step[0] for step in steps if step[0] is not None)

    def answer(self, request: Request) -> Answer:
        pieces = self.stream_answer(request)
        if pieces is None:
            raise InputError(
                "this bundle takes one prompt, and pictures and sounds that it is about",
                got=f"{len(request.files)} files, {len(request.prompts)} prompts",
                fix="metagen-deploy run BUNDLE PICTURE.png SOUND.wav --prompt TEXT",
            )
        return Answer(header=("prompt", "answer"), rows=((request.prompts[0], "".join(pieces)),))

    def stream_answer(self, request: Request) -> Iterator[str] | None:
        if len(request.prompts) != 1:
            return None
        steps = self.stream_tokens(
            request.prompts[0],
            images=[file for file in request.files if not file.endswith(_SOUNDS)],
            sounds=[file for file in request.files if file.endswith(_SOUNDS)],
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_k=0 if request.temperature == 0 else request.top_k,
            seed=request.seed,
        )
        return self.tokenizer.decode_stream(steps)

    def _embed(self, images: Sequence[str | Path | Array], sounds: Sequence[str | Path | Array]) -> Array | None:
        """[1, N of all, C], sounds first; None where there is nothing."""
        parts = [self.embed_sounds(sounds)] if sounds else []
        parts += [self.embed_images(images)] if images else []
        return np.concatenate([part.reshape(1, -1, part.shape[2]) for part in parts], axis=1) if parts else None

    def _make_nothing(self) -> Array:
        """Zeros that no token reads."""
        _, count, width = self._vision_resampler.graph.outputs[0].shape
        return np.zeros((1, int(count), int(width)), np.float32)
