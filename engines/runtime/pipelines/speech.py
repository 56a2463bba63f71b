"""Texts in, speech out: VITS.

    text_encoder(token_ids [1, T], lengths, speaker_ids)  -> states, prior_means, prior_log_variances [1, T, L], speaker
    durations(states, lengths, noise [1, 2, T], speaker)  -> log_durations [1, T]
    host: token t lasts ceil(exp(log duration) / rate) frames; its mean and variance are repeated, and noise is added
    flow(prior_latents [1, L, F], lengths, speaker)       -> latents
    vocoder(latents, speaker)                             -> samples [1, F * hop length]

Each text is spoken by itself: nothing of it depends on the others but the noise, which is drawn in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import run_rows
from engines.runtime.pipelines.stages.caches import get_axis_range
from engines.runtime.request import Answer, Request, Sound, require
from engines.runtime.text.characters import CharacterTokenizer
from engines.runtime.text.tokenizers import Tokenizer, make_tokenizer, require_known_ids
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class TextToSpeech(Pipeline):
    """Four graphs, and the length of each token between them."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self.num_speakers = take_field(config, "num_speakers", int)
        self._stochastic = take_field(config, "stochastic", bool)
        who = ("speaker",) if self.num_speakers > 1 else ()
        asked, noise = (("speaker_ids",) if who else ()), (("noise",) if self._stochastic else ())
        prior = ("states", "prior_means", "prior_log_variances")
        text = ("token_ids", "lengths", *asked)
        self._text = take_graph(config, "text_encoder", graphs, inputs=text, outputs=(*prior, *who))
        given = ("states", "lengths", *noise, *who)
        self._durations = take_graph(config, "durations", graphs, inputs=given, outputs=("log_durations",))
        drawn = ("prior_latents", "lengths", *who)
        self._flow = take_graph(config, "flow", graphs, inputs=drawn, outputs=("latents",))
        self._vocoder = take_graph(config, "vocoder", graphs, inputs=("latents", *who), outputs=("samples",))
        self.sample_rate_hz = take_field(config, "sample_rate_hz", int)
        self._hop_length = take_field(config, "hop_length", int)
        self._vocab_size = take_field(config, "vocab_size", int)
        self._duration_noise_scale = take_field(config, "duration_noise_scale", float)
        self._noise_scale = take_field(config, "noise_scale", float)
        self._speaking_rate = take_field(config, "speaking_rate", float)
        tokenizer: dict[str, object] = take_field(config, "tokenizer", dict)
        self.tokenizer: Tokenizer = (
            CharacterTokenizer(tokenizer)
            if tokenizer.get("kind") == "characters"
            else make_tokenizer(folder, manifest, tokenizer)
        )

    def answer(self, request: Request) -> Answer:
        require(request, "texts to speak", prompts=True)
        spoken = self.synthesise(request.prompts, seed=request.seed)
        rows = tuple(
            (text, round(len(samples) / self.sample_rate_hz, 3), round(float(np.abs(samples).max()), 4))
            for text, samples in zip(request.prompts, spoken, strict=True)
        )
        media = tuple(Sound(samples=samples[None], sample_rate_hz=self.sample_rate_hz) for samples in spoken)
        return Answer(header=("text", "seconds", "peak"), rows=rows, media=media)

    def synthesise(
        self,
        texts: Sequence[str],
        *,
        speaker: int = 0,
        speaking_rate: float | None = None,
        noise_scale: float | None = None,
        duration_noise_scale: float | None = None,
        seed: int = 0,
    ) -> list[Array]:
        """Samples [N] of each text, float32 in [-1, 1]. Arguments: `synthesise_tokens`."""
        random = np.random.default_rng(seed)
        return [
            self.synthesise_tokens(
                self.tokenizer.encode(text),
                speaker=speaker,
                speaking_rate=speaking_rate,
                noise_scale=noise_scale,
                duration_noise_scale=duration_noise_scale,
                random=random,
            )
            for text in texts
        ]

    def synthesise_tokens(
        self,
        token_ids: Sequence[int],
        *,
        speaker: int = 0,
        speaking_rate: float | None = None,
        noise_scale: float | None = None,
        duration_noise_scale: float | None = None,
        random: np.random.Generator,
    ) -> Array:
        """Samples [N] of one text, given as ids.

        Args:
            speaker: who speaks, from 0.
            speaking_rate: above 1 is faster; the bundle's own by default.
            noise_scale, duration_noise_scale: how much voice and rhythm vary; 0 is always the same.
            random: draws the noise of the durations [2, T], then that of the latents [L, F]; standard normal, float32.

        Raises:
            InputError: no such speaker or id; the text or what is spoken of it is longer than the graphs take.
        """
        rate = self._speaking_rate if speaking_rate is None else speaking_rate
        scale = self._noise_scale if noise_scale is None else noise_scale
        duration_scale = self._duration_noise_scale if duration_noise_scale is None else duration_noise_scale
        self._check(token_ids, speaker, rate)
        low, _ = get_axis_range(self._text, "token_ids", 1)
        padded = np.zeros((1, max(low, len(token_ids))), np.int64)
        padded[0, : len(token_ids)] = token_ids
        feed: dict[str, Array] = {"token_ids": padded, "lengths": np.array([len(token_ids)], np.int64)}
        if self.num_speakers > 1:
            feed["speaker_ids"] = np.array([speaker], np.int64)
        read = run_rows(self._text, feed)
        who = {"speaker": read["speaker"]} if self.num_speakers > 1 else {}
        asked = {"states": read["states"], "lengths": feed["lengths"], **who}
        if self._stochastic:
            drawn = random.standard_normal((1, 2, len(token_ids)), np.float32) * np.float32(duration_scale)
            asked["noise"] = np.pad(drawn, ((0, 0), (0, 0), (0, padded.shape[1] - len(token_ids))))
        logarithms = run_rows(self._durations, asked)["log_durations"][0, : len(token_ids)]
        frames = self._count_frames(logarithms, rate)
        means, variances = (
            _repeat(read[name][0, : len(token_ids)], frames) for name in ("prior_means", "prior_log_variances")
        )
        noise = random.standard_normal(means.shape, np.float32)
        return self._speak(means + noise * np.exp(variances) * np.float32(scale), who)

    def _count_frames(self, logarithms_T: Array, rate: float) -> Array:
        """How many frames each token lasts."""
        with np.errstate(over="ignore"):
            frames: Array = np.ceil(np.exp(logarithms_T) * np.float32(1 / rate))
        _, most = get_axis_range(self._flow, "prior_latents", 2)
        total = float(frames.sum())
        if not np.isfinite(total) or (most is not None and total > most):
            seconds = self._hop_length / self.sample_rate_hz
            raise InputError(
                "this text would be spoken for longer than the graphs take",
                got=f"{total * seconds:.1f} s, {total:.0f} frames",
                allowed=f"{(most or 0) * seconds:.1f} s, {most} frames",
                fix="speak it sentence by sentence, or export with a larger `frames`",
            )
        return frames.astype(np.int64)

    def _speak(self, latents_LF: Array, who: Mapping[str, Array]) -> Array:
        """Samples of latents as the prior draws them."""
        count = latents_LF.shape[1]
        low, _ = get_axis_range(self._flow, "prior_latents", 2)
        padded = np.pad(latents_LF, ((0, 0), (0, max(0, low - count))))[None]
        feed = {"prior_latents": padded, "lengths": np.array([count], np.int64), **who}
        latents = run_rows(self._flow, feed)["latents"]
        samples: Array = run_rows(self._vocoder, {"latents": latents, **who})["samples"][0]
        return samples[: count * self._hop_length]

    def _check(self, token_ids: Sequence[int], speaker: int, rate: float) -> None:
        if not 0 <= speaker < self.num_speakers:
            raise InputError(
                "there is no such speaker",
                got=str(speaker),
                allowed=f"0 to {self.num_speakers - 1}",
                fix="choose one of these numbers",
            )
        if not rate > 0:
            raise InputError(
                "the speaking rate must be positive",
                got=str(rate),
                allowed="above 0; 1 is as trained",
                fix="leave it away, or choose 0.5 to 2",
            )
        _, most = get_axis_range(self._text, "token_ids", 1)
        if not token_ids or (most is not None and len(token_ids) > most):
            raise InputError(
                "a text is empty or too long",
                got=f"{len(token_ids)} tokens",
                allowed=f"1 to {most}",
                fix="speak it sentence by sentence, or export with a larger `tokens`",
            )
        require_known_ids(token_ids, self._vocab_size)


def _repeat(values_TL: Array, frames_T: Array) -> Array:
    """[L, F]: each token's values for as many frames as it lasts; one frame of zeros where nothing lasts."""
    repeated: Array = np.repeat(values_TL, frames_T, axis=0).T
    return repeated if repeated.shape[1] else np.zeros((values_TL.shape[1], 1), np.float32)
