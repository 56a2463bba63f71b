"""Prompts in, films out: latent diffusion over space and time, guided without a classifier.

    states = text encoder(prompts)
    latents = noise, in the steps of `latent_diffusion`
    frames = decoder(latents / scaling)

Letters: B batch, C channels, F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import run_rows
from engines.runtime.pipelines.stages.latent_diffusion import Schedule, remove_noise, take_scale
from engines.runtime.request import Answer, Film, Request, require
from engines.runtime.text.context import ContextTokenizer
from specs.bundle import Manifest
from specs.errors import BundleError, InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class TextToVideo(Pipeline):
    """A film of a prompt; the seed tells one from another."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        states = ("encoder_states",)
        self._encoder = take_graph(config, "text_encoder", graphs, inputs=("token_ids",), outputs=states)
        given = ("sample", "timestep", *states)
        self._denoiser = take_graph(config, "denoiser", graphs, inputs=given, outputs=("out_sample",))
        self._decoder = take_graph(config, "decoder", graphs, inputs=("latents",), outputs=("frames",))
        self._context = ContextTokenizer(folder, manifest, take_field(config, "tokenizer", dict))
        shape: list[Any] = take_field(config, "latent_shape", list)
        made_for = next(tensor.shape[1:] for tensor in self._denoiser.graph.inputs if tensor.name == "sample")
        if list(made_for) != shape or not all(type(size) is int and size > 0 for size in shape):
            raise BundleError(
                "manifest: pipeline.latent_shape is not the denoiser's",
                got=str(shape)[:80],
                allowed=str(list(made_for)),
                fix="export the bundle again",
            )
        self.latent_shape = tuple(shape)
        self._scaling_factor = take_scale(config, "scaling_factor")
        self._frames_per_second = take_field(config, "frames_per_second", int)
        self.schedule = Schedule(config)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        latents: Array | None = None,
    ) -> list[Film]:
        """A film for each prompt.

        Args:
            steps, guidance_scale: the bundle's own by default.
            seed: of the noise: numpy's default_rng(seed).standard_normal, float32, all films in one array.
            latents: that noise itself, [B, C, F, H, W] with unit variance, instead of a seed.

        Raises:
            InputError: no prompt, or one that is too long.
        """
        if not prompts:
            raise InputError("there is no prompt", allowed="one or more", fix="--prompt TEXT")
        if latents is None:
            latents = np.random.default_rng(seed).standard_normal((len(prompts), *self.latent_shape), np.float32)
        guidance = self.schedule.choose_guidance(guidance_scale)
        texts = [*([""] * len(prompts) if guidance > 1 else []), *prompts]
        token_ids = np.stack([self._context.encode(text) for text in texts])
        states = run_rows(self._encoder, {"token_ids": token_ids})["encoder_states"]

        def call_transformer(shown: Array, timesteps: Array, index: int) -> Array:
            feed = {"sample": shown, "timestep": timesteps, "encoder_states": states}
            return run_rows(self._denoiser, feed)["out_sample"]

        return self.decode(remove_noise(latents, self.schedule.begin(steps), guidance, call_transformer))

    def decode(self, latents: Array) -> list[Film]:
        """Films of latents [B, C, F, H, W] as the scheduler leaves them."""
        unscaled = (latents / np.float32(self._scaling_factor)).astype(np.float32)
        frames = run_rows(self._decoder, {"latents": unscaled})["frames"]
        pixels = np.clip(frames / 2 + 0.5, 0, 1).transpose(0, 2, 3, 4, 1)
        return [Film(frames=film, frames_per_second=self._frames_per_second) for film in pixels]

    def answer(self, request: Request) -> Answer:
        require(request, "prompts", prompts=True)
        films = self.generate(request.prompts, seed=request.seed)
        rows = tuple((prompt, film.frames.shape[:3]) for prompt, film in zip(request.prompts, films, strict=True))
        return Answer(header=("prompt", "frames"), rows=rows, media=tuple(films))
