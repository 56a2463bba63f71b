"""Prompts in, pictures out: latent diffusion, one call of the U-Net a step, guided without a classifier.

    states = text encoders(prompts)
    latents = noise, in the steps of `latent_diffusion`, each in as many calls as the U-Net's batch range needs
    picture = decoder(latents / scaling + shift)

A refiner, where there is one, makes the last steps; it sees the last encoder's states alone (SDXL's two experts).

Letters: B batch, C channels, H height, W width of latents, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.media.picture_steps import LONGEST_SIDE
from engines.runtime.pipelines.autoencoding import finish_pictures
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import run_rows
from engines.runtime.pipelines.stages.latent_diffusion import Schedule, remove_noise, take_scale
from engines.runtime.pipelines.stages.schedulers import Scheduler
from engines.runtime.request import Answer, Picture, Request, require
from engines.runtime.text.context import ContextTokenizer
from specs.bundle import Manifest
from specs.errors import BundleError, InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

#: What SDXL's refiner is told of beauty: of what is asked for, and of what guidance leads away from.
_SCORES = (6.0, 2.5)


@dataclass(frozen=True, kw_only=True)
class _Encoder:
    """A text encoder, and what makes the ids that it reads."""

    graph: GraphSession
    context: ContextTokenizer


@dataclass(frozen=True, kw_only=True)
class TextStates:
    """What the encoders make of texts: one array of states an encoder [B, T, C], and the pooled text [B, C]."""

    states: tuple[Array, ...]
    pooled: Array | None

    def join(self, other: TextStates) -> TextStates:
        """Rows of `self`, then rows of `other`."""
        pairs = zip(self.states, other.states, strict=True)
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = np.concatenate([self.pooled, other.pooled])
        return TextStates(states=tuple(np.concatenate(pair) for pair in pairs), pooled=pooled)

    def clear(self) -> TextStates:
        """The same with zeros."""
        pooled = None if self.pooled is None else np.zeros_like(self.pooled)
        return TextStates(states=tuple(np.zeros_like(one) for one in self.states), pooled=pooled)


@final
class TextToImage(Pipeline):
    """Stable Diffusion and SDXL."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._encoders = [
            _take_encoder(folder, manifest, entry, graphs) for entry in take_field(config, "text_encoders", list)
        ]
        self._denoiser = take_graph(config, "denoiser", graphs, outputs=("out_sample",))
        self._refiner = take_graph(config, "refiner", graphs, outputs=("out_sample",)) if "refiner" in config else None
        self._decoder = take_graph(config, "decoder", graphs, inputs=("latents",), outputs=("image",))
        latents: dict[str, Any] = take_field(config, "latents", dict)
        self._channels = take_field(latents, "channels", int, at="pipeline.latents", most=LONGEST_SIDE)
        self._downscale = take_field(latents, "downscale", int, at="pipeline.latents", most=LONGEST_SIDE)
        self._scaling_factor = take_scale(latents, "scaling_factor", at="pipeline.latents")
        self._shift_factor = take_field(latents, "shift_factor", float, at="pipeline.latents")
        size: dict[str, Any] = take_field(config, "size", dict)
        self._size = {
            side: take_field(size, side, int, at="pipeline.size", most=LONGEST_SIDE) for side in ("height", "width")
        }
        self.schedule = Schedule(config)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        latents: Array | None = None,
    ) -> Array:
        """A picture for each prompt, float32 [B, height, width, 3] in [0, 1].

        Args:
            negative_prompt: what guidance leads away from; none by default.
            steps, guidance_scale: the bundle's own by default.
            height, width: in pixels, a multiple of a latent's (8); within the bundle's range.
            seed: of the noise: numpy's default_rng(seed).standard_normal, float32, all pictures in one array.
            latents: that noise itself, [B, C, H, W] with unit variance, instead of a seed.

        Raises:
            InputError: no prompt, one that is too long, or a size that the graphs do not take.
        """
        if latents is None:
            latents = self._draw_noise(len(prompts), height, width, seed)
        scheduler = self.schedule.begin(steps)
        guidance = self.schedule.choose_guidance(guidance_scale)
        texts = self.encode(prompts)
        if guidance > 1:
            texts = self._encode_absence(texts, negative_prompt, len(prompts)).join(texts)
        latents = self.denoise(latents, texts, scheduler, guidance)
        return self.decode(latents)

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """What the encoders make of prompts."""
        if not prompts:
            raise InputError("there is no prompt", allowed="one or more", fix="--prompt TEXT")
        states, pooled = [], None
        for encoder in self._encoders:
            ids = np.stack([encoder.context.encode(prompt) for prompt in prompts])
            found = run_rows(encoder.graph, {"token_ids": ids})
            states.append(found["encoder_states"])
            pooled = found.get("text_embeds")
        return TextStates(states=tuple(states), pooled=pooled)

    def denoise(self, latents: Array, texts: TextStates, scheduler: Scheduler, guidance: float) -> Array:
        """Latents of pictures from noise of unit variance; `texts` has twice the rows where `guidance` is above 1."""
        rows, size = len(latents), latents.shape[2:]
        takes_over = self._find_takeover(scheduler)

        def call_expert(shown: Array, timesteps: Array, index: int) -> Array:
            refining = index >= takes_over
            graph = self._refiner if refining and self._refiner is not None else self._denoiser
            feed = {
                "sample": shown,
                "timestep": timesteps,
                "encoder_states": np.concatenate(texts.states[-1:] if refining else texts.states, axis=2),
                **self._add_conditions(graph, texts, size, rows if guidance > 1 else 0),
            }
            return run_rows(graph, feed)["out_sample"]

        return remove_noise(latents, scheduler, guidance, call_expert)

    def decode(self, latents: Array) -> Array:
        """Pictures [B, height, width, 3] in [0, 1] of what `denoise` returns."""
        unscaled = latents / np.float32(self._scaling_factor) + np.float32(self._shift_factor)
        return finish_pictures(run_rows(self._decoder, {"latents": unscaled.astype(np.float32)})["image"])

    def answer(self, request: Request) -> Answer:
        require(request, "prompts", prompts=True)
        pictures = self.generate(request.prompts, seed=request.seed)
        rows = [(prompt, tuple(picture.shape[:2])) for prompt, picture in zip(request.prompts, pictures, strict=True)]
        return Answer(
            header=("prompt", "picture"),
            rows=tuple(rows),
            arrays={"pictures": pictures},
            media=tuple(Picture(pixels=picture) for picture in pictures),
        )

    def _encode_absence(self, texts: TextStates, negative_prompt: str | None, rows: int) -> TextStates:
        if negative_prompt is None and self.schedule.clears_empty_prompt:
            return texts.clear()
        one = self.encode([negative_prompt or ""])
        pooled = None if one.pooled is None else np.repeat(one.pooled, rows, axis=0)
        return replace(one, states=tuple(np.repeat(part, rows, axis=0) for part in one.states), pooled=pooled)

    def _find_takeover(self, scheduler: Scheduler) -> int:
        """The first call that is the refiner's; behind the last one where there is none."""
        if self._refiner is None:
            return len(scheduler.timesteps)
        cutoff = round(scheduler.trained - self.schedule.refiner_start * scheduler.trained)
        return int((scheduler.timesteps >= cutoff).sum())

    def _add_conditions(
        self, graph: GraphSession, texts: TextStates, size: tuple[int, ...], negatives: int
    ) -> dict[str, Array]:
        """SDXL's: the pooled text, and sizes in pixels; guidance leads away from the first `negatives` rows."""
        numbers = next((tensor.shape[1] for tensor in graph.graph.inputs if tensor.name == "time_ids"), None)
        if numbers is None or texts.pooled is None:
            return {}
        height, width = (side * self._downscale for side in size)
        rows = len(texts.pooled)
        if numbers == 6:
            ids = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (rows, 1))
        else:
            ids = np.tile(np.array([height, width, 0, 0, _SCORES[0]], np.float32), (rows, 1))
            ids[:negatives, 4] = _SCORES[1]
        return {"text_embeds": texts.pooled, "time_ids": ids}

    def _draw_noise(self, rows: int, height: int | None, width: int | None, seed: int) -> Array:
        scale = self._downscale
        sides = []
        for name, pixels in (("height", height), ("width", width)):
            side, rest = divmod(pixels if pixels is not None else self._size[name] * scale, scale)
            if rest or side < 1:
                raise InputError(
                    f"the {name} is no multiple of {scale}",
                    got=f"{pixels} pixels",
                    fix=f"choose a positive multiple of {scale}",
                )
            sides.append(side)
        random = np.random.default_rng(seed)
        noise: Array = random.standard_normal((rows, self._channels, *sides), np.float32)
        return noise


def _take_encoder(folder: Path, manifest: Manifest, entry: object, graphs: Mapping[str, GraphSession]) -> _Encoder:
    if not isinstance(entry, dict):
        raise BundleError("manifest: pipeline.text_encoders must hold objects", fix="export the bundle again")
    tokenizer: dict[str, Any] = take_field(entry, "tokenizer", dict, at="pipeline.text_encoders")
    return _Encoder(
        graph=take_graph(entry, "graph", graphs, inputs=("token_ids",), outputs=("encoder_states",)),
        context=ContextTokenizer(folder, manifest, tokenizer),
    )
