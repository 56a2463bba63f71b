"""Any set of modalities: an encoder each, and what fuses them."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import (
    BertComponent,
    ClipTextComponent,
    Component,
    EncoderComponent,
    FramesComponent,
    MultimodalFusionComponent,
    PictureComponent,
    Wav2Vec2Component,
    WhisperEncoderComponent,
)
from specs.families.multimodal_fusion import FUSION_ROLE, list_exported, list_streams
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, Handler
from specs.handlers.shared.tokenizers import describe_texts, describe_tokenizer
from specs.handlers.shared.towers import describe_image, make_tower
from specs.models.audio.wav2vec2 import Wav2Vec2
from specs.models.audio.whisper import WhisperEncoder
from specs.models.fusion.encoders import ENCODERS, wrap_tower
from specs.models.fusion.multimodal import MultimodalFusion
from specs.models.text.bert import Bert
from specs.models.text.clip import ClipText
from specs.samples.pictures import make_picture
from specs.samples.sounds import make_sound
from specs.samples.texts import make_text
from specs.schema import Spec, TensorSpec

_SHARE_PRESENT = 0.7
_MANY = 1 << 20  # counts are drawn below this, and then fitted to what there is


@final
class MultimodalFusionHandler(Handler):
    """Encoders of modalities, and `fusion.multimodal`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        streams = list_streams(spec.components, name_roles(spec))
        return {
            name: MultimodalFusion(config, streams)
            if isinstance(config, MultimodalFusionComponent)
            else _make_encoder(config)
            for name, config in spec.components.items()
        }

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        return wrap_tower(component)

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        """What a modality's sensor says; for the fusion, what encoders that end in a norm do, and who is present."""
        config = spec.components[graph.component]
        if isinstance(config, EncoderComponent):
            drawn = random.integers(0, _MANY, shape) if tensor.counts else None
            return config.draw_example(tensor.name, shape, random) if drawn is None else drawn
        if tensor.name in ("image", "pixels"):
            return make_picture(tensor, shape, random)
        if tensor.name == "token_ids" and isinstance(config, ClipTextComponent):
            return make_text(shape, int(tensor.high), random)
        if tensor.name == "samples":
            return make_sound(
                shape, random, sample_rate=cast(WhisperEncoderComponent | Wav2Vec2Component, config).sample_rate
            )
        if tensor.name == "presence":
            return make_presences(shape, random)
        if tensor.dtype == "int64":
            return random.integers(int(tensor.low), int(tensor.high), shape)
        return random.standard_normal(shape)

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Counts of valid places fit the places that there are; row 0 is full."""
        for tensor in graph.inputs:
            if tensor.counts:
                one, axis = find_counted(graph.inputs, tensor.counts)
                size = inputs[one].shape[axis]
                inputs[tensor.name] = 1 + inputs[tensor.name] % size
                inputs[tensor.name][:1] = size
        return inputs

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        name = roles[FUSION_ROLE]
        config, streams = cast(MultimodalFusionComponent, spec.components[name]), list_streams(spec.components, roles)
        labels = list(spec.labels) or [str(index) for index in range(config.num_classes or 0)]
        return {
            "kind": "multimodal-fusion",
            "fusion": name,
            "strategy": config.strategy,
            "modalities": [
                {"name": one.name, "has_lengths": one.has_lengths, **_describe_encoder(spec, one.name)}
                for one in streams
            ],
            "labels": labels,
            "weights": [
                {"name": tensor.name, "rows": [*map(list, tensor.rows)], "columns": [*map(list, tensor.columns)]}
                for tensor in list_exported(config, streams)
            ],
        }


def _make_encoder(config: Component) -> nn.Module:
    if isinstance(config, EncoderComponent):
        module: nn.Module = ENCODERS[config.kind](config)
        return module
    if isinstance(config, PictureComponent):
        return make_tower(config)
    if isinstance(config, ClipTextComponent):
        return ClipText(config)
    if isinstance(config, BertComponent):
        return Bert(config)
    if isinstance(config, Wav2Vec2Component):
        return Wav2Vec2(config)
    assert isinstance(config, WhisperEncoderComponent), config.kind
    return WhisperEncoder(config)


def _describe_encoder(spec: Spec, name: str) -> dict[str, Any]:
    """What a host does before it runs an encoder: `reads` names one of the loaders of its pipeline."""
    config = spec.components[name]
    if isinstance(config, FramesComponent):
        return {"reads": "film", "image": describe_image(config)}
    if isinstance(config, EncoderComponent):
        counted = {tensor.name: tensor.counts for tensor in config.list_inputs() if tensor.counts}
        return {"reads": "values", "counted": counted}
    if isinstance(config, PictureComponent):
        reads = "pixels" if config.preprocess == "graph" else "image"
        return {"reads": reads, "image": describe_image(config)}
    if isinstance(config, ClipTextComponent):
        return {"reads": "text", "tokenizer": describe_texts(spec, name, config)}
    if isinstance(config, BertComponent):
        tokenizer = describe_tokenizer(spec, name, vocab_size=config.vocab_size)
        return {"reads": "text", "tokenizer": {**tokenizer, "context_length": config.context_length}}
    audio = cast(WhisperEncoderComponent | Wav2Vec2Component, config)
    return {"reads": "sound", "sample_rate": audio.sample_rate, "num_samples": audio.num_samples}


def find_counted(inputs: tuple[TensorSpec, ...], dim: str) -> tuple[str, int]:
    """An input that has `dim`, and which of its axes that is."""
    return next((tensor.name, tensor.shape.index(dim)) for tensor in inputs if dim in tensor.shape)


def make_presences(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """All modalities, some of them, and in every fifth row nothing at all."""
    presence = random.random(shape) < _SHARE_PRESENT
    presence[0] = True
    presence[4::5] = False
    return presence
