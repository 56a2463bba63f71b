"""Towers that see one picture: their modules, and what a host is told of the picture."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from specs.components import (
    Component,
    MobileVitComponent,
    PictureComponent,
    ResNetComponent,
    VisionTransformerComponent,
)
from specs.models.vision.mobilevit import MobileVit
from specs.models.vision.resnet import ResNet
from specs.models.vision.vit import VisionTransformer


def make_tower(config: Component) -> nn.Module:
    """The module of any `PictureComponent`."""
    if isinstance(config, ResNetComponent):
        return ResNet(config)
    if isinstance(config, MobileVitComponent):
        return MobileVit(config)
    return VisionTransformer(cast(VisionTransformerComponent, config))


def describe_image(config: PictureComponent) -> dict[str, Any]:
    """The size that the model sees, and how a picture is made to have it: by a host, or in a graph of `pixels`."""
    height, width = config.image
    size = {"height": height, "width": width, "channels": config.num_channels}
    if config.preprocessing is None:
        return size
    return size | {"steps": config.preprocessing.model_dump(exclude_none=True)}
