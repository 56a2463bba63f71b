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
from specs.handlers.shared.tokenizers import describe_texts
from specs.handlers.shared.towers import describe_image
from specs.models.fusion.pair import FUSIONS
from specs.models.text.clip import ClipText
from specs.models.vision.raw_pixels import take_pixels
from specs.models.vision.vit import VisionTransformer
from specs.samples.pictures import make_picture
from specs.samples.texts import make_text
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


def make_presence(batch: int, random: np.random.Generator) -> NDArray[Any]:
    """Both modalities, one of them, and nothing at all, in turn."""
    presence = random.random((batch, 2)) < 0.7
    presence[0] = True
    presence[3::4] = False
    return presence
