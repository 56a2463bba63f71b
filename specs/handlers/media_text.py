"""A decoder that reads pictures, films or sounds: LLaVA, and all that puts a resampler before a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import (
    PerceiverComponent,
    ProjectorComponent,
    VisionTransformerComponent,
    WhisperEncoderComponent,
)
from specs.families.base import Roles
from specs.families.media_text import (
    SOURCES,
    count_tokens,
    find_media_token,
    get_decoder,
    get_projector,
    list_resamplers,
    make_features,
)
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, GraphModule, Handler
from specs.handlers.generation import TextGenerationHandler
from specs.handlers.shared.decoders import make_decoder
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.handlers.shared.towers import describe_image
from specs.models.audio.whisper import WhisperEncoder
from specs.models.fusion.media_text import LayerFeatures, PatchFeatures, PrefillWithMedia, Projector
from specs.models.fusion.resampling import Perceiver
from specs.models.text.causal import CausalModel, Decode
from specs.models.vision.raw_pixels import take_pixels
from specs.models.vision.vit import VisionTransformer
from specs.samples.pictures import make_picture
from specs.samples.sounds import make_sound
from specs.schema import Spec, TensorSpec

#: A decode step is the same whatever the prompt was.
_TEXT = TextGenerationHandler()
#: What a host calls what each resampler is for.
_MEDIA = {"audio_resampler": "sound", "vision_resampler": "picture", "video_resampler": "film"}


@final
class MediaToTextHandler(Handler):
    """A decoder whose prefill also takes embeddings of media; the components before it have one graph each."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        roles = name_roles(spec)
        made = {name: self._make_component(spec, roles, role) for role, name in roles.items()}
        return {name: made[name] for name in spec.components}

    def _make_component(self, spec: Spec, roles: Roles, role: str) -> nn.Module:
        config = spec.components[roles[role]]
        if isinstance(config, WhisperEncoderComponent):
            return WhisperEncoder(config)
        if isinstance(config, PerceiverComponent):
            return Perceiver(config)
        projector = get_projector(spec.components, roles)
        if isinstance(config, VisionTransformerComponent):
            tower = VisionTransformer(config)
            return PatchFeatures(tower) if projector is None else LayerFeatures(tower, projector)
        decoder = get_decoder(spec.components, roles)
        if isinstance(config, ProjectorComponent):
            width = int(make_features(spec.components, roles, role).shape[2])
            return Projector(config, image_size=width, text_size=decoder.hidden_size)
        model = make_decoder(decoder)
        model.media_token = find_media_token(spec.components, roles)
        return model

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        if isinstance(component, PatchFeatures | LayerFeatures):
            return take_pixels(component, component.tower.config)
        if not isinstance(component, CausalModel):
            return component
        return PrefillWithMedia(component) if graph.file_stem == "prefill" else Decode(component)

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        """A prompt's tokens are a medium's for a half, from the second one on."""
        if tensor.name in ("image", "pixels"):
            return make_picture(tensor, shape, random)
        if tensor.name == "samples":
            config = cast(WhisperEncoderComponent, spec.components[graph.component])
            return make_sound(shape, random, sample_rate=config.sample_rate)
        drawn = _TEXT.make_tensor(spec, graph, tensor, shape, random)
        if tensor.name == "token_ids" and graph.file_stem == "prefill":
            drawn[:, 1 : 1 + shape[1] // 2] = find_media_token(spec.components, name_roles(spec))
        return drawn

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        return _TEXT.tie_inputs(graph, inputs) if graph.file_stem in ("prefill", "decode") else inputs

    def name_sizes(self, spec: Spec, graph: GraphSpec, *, seed: int) -> dict[str, int]:
        return _TEXT.name_sizes(spec, graph, seed=seed)

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        if graph.file_stem == "decode":
            return _TEXT.make_realistic_inputs(spec, graph, sizes=sizes, seed=seed)
        return self.make_inputs(spec, graph, sizes=sizes, seed=seed)

    def list_calibration_inputs(self, spec: Spec, graph: GraphModule) -> tuple[TensorSpec, ...]:
        return _TEXT.list_calibration_inputs(spec, graph) if graph.file_stem == "decode" else graph.inputs

    def finish_calibration(self, spec: Spec, graph: GraphModule, arrays: Arrays) -> Arrays:
        return _TEXT.finish_calibration(spec, graph, arrays) if graph.file_stem == "decode" else arrays

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        decoder, name = get_decoder(spec.components, roles), roles["decoder"]
        return {
            "kind": "media-to-text",
            "media": [_describe_medium(spec, roles, role) for role in list_resamplers(roles)],
            "media_token": find_media_token(spec.components, roles),
            "prefill": f"{name}.prefill",
            "decode": f"{name}.decode",
            "num_layers": decoder.num_layers,
            "tokenizer": describe_tokenizer(spec, name, vocab_size=decoder.vocab_size),
            "vocab_size": decoder.vocab_size,
            "max_cache": spec.dims["cache"].max,
        }


def _describe_medium(spec: Spec, roles: Roles, role: str) -> dict[str, Any]:
    """What a host needs to make embeddings of one picture, film or sound."""
    encoder, resampler = spec.components[roles[SOURCES[role]]], spec.components[roles[role]]
    described: dict[str, Any] = {
        "kind": _MEDIA[role],
        "encoder": roles[SOURCES[role]],
        "resampler": roles[role],
        "tokens": count_tokens(spec.components, roles, role),
    }
    if isinstance(encoder, WhisperEncoderComponent):
        return described | {"sample_rate": encoder.sample_rate, "num_samples": encoder.num_samples}
    described["image"] = describe_image(cast(VisionTransformerComponent, encoder))
    frames = getattr(resampler, "num_frames", None)
    return described | ({"num_frames": frames} if frames else {})
