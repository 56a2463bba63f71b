"""Image tower, projector and decoder: LLaVA."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.families.image_text import count_image_tokens, get_parts, measure
from specs.graphs import GraphSpec, name_roles
from specs.handlers.image import describe_image, make_image
from specs.handlers.media_text import TEXT, MediaTextHandler
from specs.handlers.text import make_decoder
from specs.handlers.tokenizers import describe_tokenizer
from specs.models.image_text import ImageFeatures, Projector
from specs.models.vision import VisionTransformer
from specs.schema import Spec, TensorSpec


@final
class ImageTextHandler(MediaTextHandler):
    """Four graphs: tower, projector, prefill and decode."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        roles = name_roles(spec)
        tower, projector, decoder = get_parts(spec.components, roles)
        model = make_decoder(decoder)
        model.image_token = projector.image_token
        width = measure(tower, projector)
        return {
            roles["image_encoder"]: ImageFeatures(VisionTransformer(tower), projector),
            roles["projector"]: Projector(projector, image_size=width, text_size=decoder.hidden_size),
            roles["decoder"]: model,
        }

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        """A prompt's tokens are a picture's for a half, from the second one on."""
        if tensor.name == "image":
            return make_image(shape, random)
        drawn = TEXT.make_tensor(spec, graph, tensor, shape, random)
        if tensor.name == "token_ids" and graph.file_stem == "prefill":
            drawn[:, 1 : 1 + shape[1] // 2] = get_parts(spec.components, name_roles(spec))[1].image_token
        return drawn

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        tower, projector, decoder = get_parts(spec.components, roles)
        name = roles["decoder"]
        return {
            "kind": "image-text-to-text",
            "image_encoder": roles["image_encoder"],
            "projector": roles["projector"],
            "prefill": f"{name}.prefill",
            "decode": f"{name}.decode",
            "image": describe_image(tower),
            "image_token": projector.image_token,
            "image_tokens": count_image_tokens(tower, projector),
            "num_layers": decoder.num_layers,
            "tokenizer": describe_tokenizer(spec, name, vocab_size=decoder.vocab_size),
            "vocab_size": decoder.vocab_size,
            "max_cache": spec.dims["cache"].max,
        }
