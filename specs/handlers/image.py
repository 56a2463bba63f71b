"""Image classifiers and image encoders: one graph, pixels in, logits or features out."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import (
    Component,
    MobileVitComponent,
    PictureComponent,
    ResNetComponent,
    VisionTransformerComponent,
)
from specs.graphs import GraphSpec
from specs.handlers.base import Handler
from specs.models.vision.mobilevit import MobileVit
from specs.models.vision.raw_pixels import take_pixels
from specs.models.vision.resnet import ResNet
from specs.models.vision.vit import ImageEmbedding, VisionTransformer
from specs.schema import Spec, TensorSpec


@final
class ImageHandler(Handler):
    """One `vision` tower: a transformer, convolutions, or both."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: make_tower(config) for name, config in spec.components.items()}

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        is_encoder = isinstance(component, VisionTransformer) and component.head is None
        module = ImageEmbedding(component) if is_encoder else component  # type: ignore[arg-type]
        return take_pixels(module, cast(PictureComponent, component.config))

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        return make_picture(tensor, shape, random)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        ((name, component),) = spec.components.items()
        config = cast(PictureComponent, component)
        described = {"graph": name, "image": describe_image(config)}
        if config.num_classes is None:
            return {"kind": "image-embedding", **described}
        labels = list(spec.labels) or [str(index) for index in range(config.num_classes)]
        return {"kind": "image-classification", **described, "labels": labels}


def make_tower(config: Component) -> nn.Module:
    """The module of any `PictureComponent`."""
    if isinstance(config, ResNetComponent):
        return ResNet(config)
    if isinstance(config, MobileVitComponent):
        return MobileVit(config)
    return VisionTransformer(cast(VisionTransformerComponent, config))


def make_picture(tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """`image` or `pixels`, whichever a graph takes."""
    return make_pixels(shape, random) if tensor.name == "pixels" else make_image(shape, random)


def make_image(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """Pixels [B, C, H, W] in [0, 1): noise over a gradient of each image's own, as pictures have both."""
    batch, channels, height, width = shape
    slope_y, slope_x, level = random.random((3, batch, channels, 1, 1))
    gradient = slope_y * np.linspace(0, 1, height)[:, None] + slope_x * np.linspace(0, 1, width) + level
    image: NDArray[Any] = gradient / 3 * 0.7 + random.random(shape) * 0.3
    return image


def make_pixels(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """`make_image` as raw pixels, uint8 [B, H, W, C]."""
    batch, height, width, channels = shape
    image = make_image((batch, channels, height, width), random)
    pixels: NDArray[Any] = (image.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels


def describe_image(config: PictureComponent) -> dict[str, Any]:
    """The size that the model sees, and how a picture is made to have it: by a host, or in a graph of `pixels`."""
    height, width = config.image
    size = {"height": height, "width": width, "channels": config.num_channels}
    if config.preprocessing is None:
        return size
    return size | {"steps": config.preprocessing.model_dump(exclude_none=True)}
