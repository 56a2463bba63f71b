"""An image tower, a text tower, and what joins them: three graphs."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import ClipTextComponent, FusionComponent, VisionTransformerComponent
from specs.families.similarity import measure_towers
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.handlers.image import describe_image, make_picture
from specs.handlers.tokenizers import describe_tokenizer
from specs.models.fusion.pair import FUSIONS
from specs.models.text.clip import ClipText
from specs.models.vision.raw_pixels import take_pixels
from specs.models.vision.vit import VisionTransformer
from specs.schema import Spec, TensorSpec


@final
class ImageTextSimilarityHandler(Handler):
    """A `vision` tower, CLIP's or SigLIP's text tower, and one of `fusion.*`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        image_size, text_size = measure_towers(spec.components, name_roles(spec))
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, VisionTransformerComponent):
                modules[name] = VisionTransformer(config)
            elif isinstance(config, ClipTextComponent):
                modules[name] = ClipText(config)
            else:
                assert isinstance(config, FusionComponent), config.kind
                modules[name] = FUSIONS[config.kind](config, image_size=image_size, text_size=text_size)
        return modules

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        return take_pixels(component, component.config) if isinstance(component, VisionTransformer) else component

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name in ("image", "pixels"):
            return make_picture(tensor, shape, random)
        if tensor.name == "token_ids":
            return make_text(shape, int(tensor.high), random)
        if tensor.name == "presence":
            return make_presence(shape[0], random)
        return random.standard_normal(shape)  # a tower ends in LayerNorm

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        image = cast(VisionTransformerComponent, spec.components[roles["image_encoder"]])
        text = cast(ClipTextComponent, spec.components[roles["text_encoder"]])
        return {
            "kind": "image-text-similarity",
            **roles,
            "fusion_kind": spec.components[roles["fusion"]].kind,
            "image": describe_image(image),
            "tokenizer": describe_texts(spec, roles["text_encoder"], text),
        }


def describe_texts(spec: Spec, name: str, config: ClipTextComponent) -> dict[str, Any]:
    """A tokenizer's file puts the end of text there itself; bytes and bare ids are followed by the largest id."""
    described = describe_tokenizer(spec, name, vocab_size=config.vocab_size)
    own = {} if described["kind"] == "tokenizers" else {"end_of_text": config.vocab_size - 1}
    return {**described, "context_length": config.context_length, **own}


def make_text(shape: tuple[int, ...], vocab_size: int, random: np.random.Generator) -> NDArray[Any]:
    """Texts of different lengths: ids, the end-of-text token (the largest id), and zeros. The first one is full."""
    batch, context = shape
    ids = random.integers(0, max(1, vocab_size - 1), shape)
    end = random.integers(context // 2, context, batch)
    end[0] = context - 1
    position = np.arange(context)
    ids[position == end[:, None]] = vocab_size - 1
    ids[position > end[:, None]] = 0
    return ids


def make_presence(batch: int, random: np.random.Generator) -> NDArray[Any]:
    """Both modalities, one of them, and nothing at all, in turn."""
    presence = random.random((batch, 2)) < 0.7
    presence[0] = True
    presence[3::4] = False
    return presence
