"""Text to video: a prompt's tokens, noise in three dimensions, and latents."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import ClipTextComponent, SchedulerComponent
from specs.components.video.diffusion import VideoDecoderComponent, VideoTransformerComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.text.clip import ClipText
from specs.models.text.condition import LastStates
from specs.models.video.diffusion import VideoDecoder, VideoTransformer
from specs.samples.texts import make_text
from specs.schema import Spec, TensorSpec


@final
class TextToVideoHandler(Handler):
    """`text.clip`, `video.dit`, `video.vae`, `diffusion.scheduler`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, ClipTextComponent):
                modules[name] = ClipText(config)
            elif isinstance(config, VideoTransformerComponent):
                modules[name] = VideoTransformer(config)
            elif isinstance(config, VideoDecoderComponent):
                modules[name] = VideoDecoder(config)
        return modules

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        return LastStates(component) if isinstance(component, ClipText) else component

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "token_ids":
            return make_text(shape, int(tensor.high), random)
        if tensor.name == "timestep":
            return random.integers(0, int(tensor.high), shape).astype(np.float32)
        return random.standard_normal(shape, dtype=np.float32)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        text = cast(ClipTextComponent, spec.components[roles["text_encoder"]])
        denoiser = cast(VideoTransformerComponent, spec.components[roles["denoiser"]])
        vae = cast(VideoDecoderComponent, spec.components[roles["vae"]])
        scheduler = cast(SchedulerComponent, spec.components[roles["scheduler"]])
        return {
            "kind": "text-to-video",
            "text_encoder": roles["text_encoder"],
            "denoiser": roles["denoiser"],
            "decoder": roles["vae"],
            "latent_shape": list(denoiser.latent_shape),
            "scaling_factor": vae.scaling_factor,
            "frames_per_second": vae.frames_per_second,
            "tokenizer": {
                **describe_tokenizer(spec, roles["text_encoder"], vocab_size=text.vocab_size),
                "context_length": text.context_length,
                "end_of_text": text.end_token if text.end_token is not None else text.vocab_size - 1,
            },
            "scheduler": scheduler.model_dump(exclude={"kind"}, exclude_none=True),
        }
