"""A decoder that reads pictures and sounds: two encoders, two resamplers, prefill and decode."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from specs.components import CausalComponent, Component, VisionTransformerComponent, WhisperEncoderComponent
from specs.components.resampling import PerceiverComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.image import describe_image, make_image
from specs.handlers.media_text import TEXT, MediaTextHandler
from specs.handlers.sound import make_sound
from specs.handlers.text import make_decoder
from specs.handlers.tokenizers import describe_tokenizer
from specs.models.resampling import Perceiver
from specs.models.vision import VisionTransformer
from specs.models.whisper import WhisperEncoder
from specs.schema import Spec, TensorSpec


class PatchFeatures(nn.Module):
    """image [B, channels, height, width] in [0, 1] -> features of the patches [B, N, C]."""

    def __init__(self, config: VisionTransformerComponent) -> None:
        super().__init__()
        self.tower = VisionTransformer(config)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.tower.normalise_tokens(self.tower.forward_features(image_BCHW, keep_class_token=False))


@final
class MultimodalLlmHandler(MediaTextHandler):
    """A vision tower, `audio.whisper`, two `fusion.perceiver`, and a decoder."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: _make_component(config) for name, config in spec.components.items()}

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        """A prompt's tokens are a picture's or a sound's for a half, from the first one on."""
        if tensor.name == "image":
            return make_image(shape, random)
        if tensor.name == "samples":
            config = cast(WhisperEncoderComponent, spec.components[graph.component])
            return make_sound(shape, random, sample_rate=config.sample_rate)
        drawn = TEXT.make_tensor(spec, graph, tensor, shape, random)
        if tensor.name == "token_ids" and graph.file_stem == "prefill":
            drawn[:, : shape[1] // 2] = tensor.high - 1
        return drawn

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        llm = cast(CausalComponent, spec.components[roles["llm"]])
        audio = cast(WhisperEncoderComponent, spec.components[roles["audio"]])
        resamplers = {
            f"{kind}_tokens": cast(PerceiverComponent, spec.components[roles[role]]).num_latents
            for kind, role in (("image", "vision_resampler"), ("audio", "audio_resampler"))
        }
        return {
            "kind": "multimodal-llm",
            **{role: name for role, name in roles.items() if role != "llm"},
            "prefill": f"{roles['llm']}.prefill",
            "decode": f"{roles['llm']}.decode",
            "image": describe_image(cast(VisionTransformerComponent, spec.components[roles["vision"]])),
            "sample_rate": audio.sample_rate,
            "num_samples": audio.num_samples,
            **resamplers,
            "media_token": llm.vocab_size - 1,
            "num_layers": llm.num_layers,
            "tokenizer": describe_tokenizer(spec, roles["llm"], vocab_size=llm.vocab_size),
            "vocab_size": llm.vocab_size,
            "max_cache": spec.dims["cache"].max,
        }


def _make_component(config: Component) -> nn.Module:
    if isinstance(config, VisionTransformerComponent):
        return PatchFeatures(config)
    if isinstance(config, WhisperEncoderComponent):
        return WhisperEncoder(config)
    if isinstance(config, PerceiverComponent):
        return Perceiver(config)
    model = make_decoder(config)
    model.image_token = cast(CausalComponent, config).vocab_size - 1
    return model
