"""Image encoders: one graph, pixels in, an embedding and the features of every token or place out."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import PictureComponent
from specs.graphs import GraphSpec
from specs.handlers.base import Handler
from specs.handlers.shared.towers import describe_image, make_tower
from specs.models.vision.raw_pixels import take_pixels
from specs.models.vision.vit import ImageEmbedding, VisionTransformer
from specs.samples.pictures import make_picture
from specs.schema import Spec, TensorSpec


@final
class ImageEmbeddingHandler(Handler):
    """One `vision` tower without a head: a transformer, convolutions, or both."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: make_tower(config) for name, config in spec.components.items()}

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        module = ImageEmbedding(component) if isinstance(component, VisionTransformer) else component
        return take_pixels(module, cast(PictureComponent, component.config))

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        return make_picture(tensor, shape, random)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        ((name, component),) = spec.components.items()
        return {"kind": "image-embedding", "graph": name, "image": describe_image(cast(PictureComponent, component))}
