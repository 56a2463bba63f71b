"""A text in, music out: MusicGen.

    text_encoder(token_ids [B, N], lengths [B])                        -> states [B, N, C]
    prefill(codes [B, Q, T], states, text_lengths [B])                 -> logits [B, Q, V], keys_i, values_i, cross_*
    decode(codes [B, Q, 1], lengths [B], text_lengths, past_*, cross_*) -> logits [B, Q, V], keys_i, values_i
    codec_decode(codes [B, Q, F])                                      -> samples [B, 1, F * hop length]

Guidance (Ho and Salimans 2022) runs every row twice, with its text and with none, and goes on from the one beyond the
other: none + scale (text - none). Stereo decodes the codebooks of left and right, which take turns, one after another.

Delay (Copet et al. 2023): codebook q of a channel starts q steps after the first and ends q steps later; the start
token fills the gaps. So n steps of Q codebooks a channel make n + 1 - Q frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.codec import CodecDecoder
from engines.runtime.pipelines.stages.batching import get_batch_range, pad_rows
from engines.runtime.pipelines.stages.caches import choose_kept, fit_cache, get_axis_range, take_cache_names
from engines.runtime.pipelines.stages.latent_diffusion import take_scale
from engines.runtime.pipelines.stages.sampling import Sampler, Sampling
from engines.runtime.request import Answer, Request, Sound, require
from engines.runtime.text.tokenizers import make_tokenizer, require_known_ids
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

DEFAULT_SECONDS = 10
_FREE = -1  # in a delay pattern: a code that the decoder chooses


@final
class TextToAudio(Pipeline):
    """Four graphs. Greedy by default; with a temperature, seeded sampling among the `top_k` likeliest codes."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._names = take_cache_names(config)
        past, self._cross = [f"past_{name}" for name in self._names], [f"cross_{name}" for name in self._names]
        outputs = ["logits", *self._names]
        self._text = take_graph(config, "text_encoder", graphs, inputs=("token_ids", "lengths"), outputs=("states",))
        self._prefill = take_graph(
            config, "prefill", graphs, inputs=("codes", "states", "text_lengths"), outputs=[*outputs, *self._cross]
        )
        step = ["codes", "lengths", "text_lengths", *past, *self._cross]
        self._decode = take_graph(config, "decode", graphs, inputs=step, outputs=outputs)
        self.codec = CodecDecoder(manifest, graphs)
        self._channels = take_field(config, "audio_channels", int)
        self._codebooks = take_field(config, "num_codebooks", int)
        self._start_token = take_field(config, "codebook_size", int)  # the one behind the codes
        self._text_vocab_size = take_field(config, "text_vocab_size", int)
        self._guidance_scale = take_scale(config, "guidance_scale", 1.0)
        tokenizer: dict[str, object] = take_field(config, "tokenizer", dict)
        self.tokenizer = make_tokenizer(folder, manifest, tokenizer)

    @property
    def sample_rate_hz(self) -> int:
        return self.codec.sample_rate_hz

    def answer(self, request: Request) -> Answer:
        require(request, "a prompt", prompts=True)
        samples = self.generate(
            request.prompts,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            seed=request.seed,
        )
        seconds, rate = round(samples.shape[2] / self.sample_rate_hz, 3), self.sample_rate_hz
        peaks = [round(float(np.abs(row).max(initial=0.0)), 4) for row in samples]
        return Answer(
            header=("prompt", "seconds", "channels", "peak"),
            rows=tuple(
                (prompt, seconds, self._channels, peak) for prompt, peak in zip(request.prompts, peaks, strict=True)
            ),
            arrays={"samples": samples},
            media=tuple(Sound(samples=row, sample_rate_hz=rate) for row in samples),
        )

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        guidance_scale: float | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Array:
        """Music for each prompt: samples [B, channels, N], float32 in about [-1, 1]. Arguments: `generate_codes`."""
        codes = self.generate_codes(
            [self.tokenizer.encode(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )
        return self.decode_codes(codes)

    def generate_codes(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        guidance_scale: float | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Array:
        """Codes [B, Q, F], int64, of texts given as token ids.

        Args:
            prompts: ids of each text, with its end token; lengths may differ.
            max_new_tokens: steps, of which the delay takes one less than a channel has codebooks; DEFAULT_SECONDS, or
                what the cache has room for, when absent.
            guidance_scale: 1 for none; what the model was saved with when absent.
            temperature: 0 takes the likeliest code; above, logits are divided by it and a code is drawn.
            top_k: draw among so many of the likeliest; 0 for all.
            seed: of the draws; the same seed gives the same codes on the same backend.

        Raises:
            InputError: no prompt or an empty one, an id outside the vocabulary, or more steps than fit.
        """
        scale = self._guidance_scale if guidance_scale is None else guidance_scale
        steps = self._choose_steps(max_new_tokens)
        self._check_request(prompts, scale)
        copies = 2 if scale > 1 else 1
        low, high = get_batch_range(self._decode)
        rows = len(prompts) if high is None else high // copies
        if not rows:
            raise InputError(
                "guidance runs every prompt twice, and this bundle takes one row at a time",
                allowed="guidance_scale 1",
                fix="export with --dim batch=1:2:8",
            )
        sampler = Sampler(Sampling(temperature=temperature, top_k=top_k, seed=seed))
        blocks = []
        for start in range(0, len(prompts), rows):
            block = prompts[start : start + rows]
            filled = [*block, *[block[-1]] * (-(-low // copies) - len(block))]
            blocks.append(self._generate_block(filled, steps, scale, sampler)[: len(block)])
        return np.concatenate(blocks)

    def decode_codes(self, codes: Array) -> Array:
        """Samples [B, channels, F * hop length] of codes [B, Q, F]."""
        channels = [
            self.codec.decode(np.ascontiguousarray(codes[:, c :: self._channels])) for c in range(self._channels)
        ]
        return np.concatenate(channels, axis=1)

    def _generate_block(self, prompts: Sequence[Sequence[int]], steps: int, scale: float, sampler: Sampler) -> Array:
        text = self._read_texts(prompts, guided=scale > 1)
        rows, copies = len(prompts), 2 if scale > 1 else 1
        pattern_QL = make_delay_pattern(self._codebooks, self._channels, steps + 1, self._start_token)
        codes = np.full((rows, self._codebooks, steps + 1), self._start_token, np.int64)
        results: dict[str, Array] = {}
        cross: dict[str, Array] = {}
        for step in range(steps):
            frame = np.concatenate([codes[:, :, step : step + 1]] * copies)
            if step == 0:
                results = self._prefill.run({"codes": frame, **text}, keep=choose_kept(self._cross, self._decode))
                cross = {name: results[name] for name in self._cross}
            else:
                feed = {"lengths": np.full(len(frame), step, np.int64), "text_lengths": text["text_lengths"]}
                feed |= {"codes": frame, **self._fit_cache(results, step + 1), **cross}
                results = self._decode.run(feed, keep=choose_kept(self._names, self._decode))
            logits = guide(results["logits"], scale)
            chosen = sampler.choose(logits.reshape(-1, logits.shape[-1])).reshape(rows, self._codebooks)
            fixed_Q = pattern_QL[:, step + 1]
            codes[:, :, step + 1] = np.where(fixed_Q == _FREE, chosen, fixed_Q)
        return drop_delay(codes, pattern_QL)

    def _read_texts(self, prompts: Sequence[Sequence[int]], *, guided: bool) -> dict[str, Array]:
        """The texts' states and lengths; guided, once more as rows without a text."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        low, _ = get_axis_range(self._text, "token_ids", 1)
        token_ids = np.zeros((len(prompts), max(low, lengths.max())), np.int64)
        for row, prompt in zip(token_ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        least, _ = get_batch_range(self._text)
        feed = {"token_ids": pad_rows(token_ids, least), "lengths": pad_rows(lengths, least)}
        states = self._text.run(feed, check_finite=True)["states"][: len(prompts)]
        if not guided:
            return {"states": states, "text_lengths": lengths}
        return {
            "states": np.concatenate([states, np.zeros_like(states)]),
            "text_lengths": np.concatenate([lengths, np.zeros_like(lengths)]),
        }

    def _fit_cache(self, results: Mapping[str, Array], slots: int) -> dict[str, Array]:
        low, high = get_axis_range(self._decode, "past_keys_0", 2)
        return fit_cache(results, self._names, self._decode, slots=slots, low=low, high=high or slots)

    def _choose_steps(self, max_new_tokens: int | None) -> int:
        _, slots = get_axis_range(self._decode, "past_keys_0", 2)
        delay = self._codebooks // self._channels - 1
        frames = self.codec.max_frames
        limits = [slots or 1 << 20, (frames or 1 << 20) + delay]
        if max_new_tokens is None:
            wanted = DEFAULT_SECONDS * self.sample_rate_hz // self.codec.hop_length + delay
            return min(wanted, *limits)
        if not 1 <= max_new_tokens <= min(limits):
            raise InputError(
                "so many steps do not fit",
                got=f"max_new_tokens {max_new_tokens}",
                allowed=f"1 to {min(limits)}",
                fix="ask for fewer, or export with larger `cache` and `frames`",
            )
        return max_new_tokens

    def _check_request(self, prompts: Sequence[Sequence[int]], scale: float) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError("a prompt is empty", allowed="one token or more", fix="say what shall be heard")
        _, most = get_axis_range(self._text, "token_ids", 1)
        for prompt in prompts:
            if most is not None and len(prompt) > most:
                raise InputError(
                    "a prompt is too long",
                    got=f"{len(prompt)} tokens",
                    allowed=f"1 to {most}",
                    fix="shorten it, or export with a larger `text_tokens`",
                )
            require_known_ids(prompt, self._text_vocab_size)
        if not scale >= 1:
            raise InputError(
                "these settings generate nothing",
                got=f"guidance_scale {scale}",
                allowed="guidance_scale from 1",
                fix="correct these settings",
            )


def guide(logits: Array, scale: float) -> Array:
    """none + scale (text - none), where the first half of the rows has the text; the logits as they are at 1."""
    if scale <= 1:
        return logits
    text, none = np.split(logits, 2)
    guided: Array = none + (text - none) * np.float32(scale)
    return guided


def make_delay_pattern(codebooks: int, channels: int, length: int, start_token: int) -> Array:
    """[Q, length]: the start token where a delay has nothing to choose, _FREE elsewhere.

    What is too short for every codebook to be heard once is not delayed.
    """
    per_channel = codebooks // channels
    pattern = np.full((codebooks, length), _FREE, np.int64)
    if length < 2 * per_channel - 1:
        return pattern
    delay_Q1 = np.arange(codebooks)[:, None] // channels
    place = np.arange(length)
    pattern[(place <= delay_Q1) | (place >= length - per_channel + 1 + delay_Q1)] = start_token
    return pattern


def drop_delay(codes: Array, pattern_QL: Array) -> Array:
    """What was chosen, [B, Q, F], of codes [B, Q, length] whose first column is the start token."""
    free_QL = pattern_QL == _FREE
    free_QL[:, 0] = False
    return codes[:, free_QL].reshape(len(codes), len(pattern_QL), -1)
