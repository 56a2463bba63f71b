"""Image classifiers: one graph, pixels in, logits out."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import VisionTransformerComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.models.vision import VisionTransformer
from specs.schema import Spec, TensorSpec


@final
class ImageHandler(Handler):
    """`vision.vit`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {
            name: VisionTransformer(cast(VisionTransformerComponent, config))
            for name, config in spec.components.items()
        }

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        return make_image(shape, random)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        name = name_roles(spec)["classifier"]
        config = cast(VisionTransformerComponent, spec.components[name])
        labels = list(spec.labels) or [str(index) for index in range(config.num_classes or 0)]
        return {"kind": "image-classification", "graph": name, "image": describe_image(config), "labels": labels}


def make_image(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """Pixels [B, C, H, W] in [0, 1): noise over a gradient of each image's own, as pictures have both."""
    batch, channels, height, width = shape
    slope_y, slope_x, level = random.random((3, batch, channels, 1, 1))
    gradient = slope_y * np.linspace(0, 1, height)[:, None] + slope_x * np.linspace(0, 1, width) + level
    image: NDArray[Any] = gradient / 3 * 0.7 + random.random(shape) * 0.3
    return image


def describe_image(config: VisionTransformerComponent) -> dict[str, int]:
    """The size of the pixels that a host hands over."""
    return {"height": config.image_size, "width": config.image_size, "channels": config.num_channels}
