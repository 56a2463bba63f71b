"""The kinds of component a spec can name, as frozen configurations: COMPONENTS lists them all.

A configuration knows its sizes and counts its parameters without torch, so that `show` and the target check run on
any machine; `specs/models/` holds the modules built from them, and a test compares the two counts.
"""

from __future__ import annotations

from specs.components.base import Activation, Activations, Component, LayerCount, Size, TransformerSizes
from specs.components.fusion import FusionComponent
from specs.components.text import ClipTextComponent, DecoderComponent
from specs.components.vision import VisionTransformerComponent

__all__ = [
    "COMPONENTS",
    "Activation",
    "Activations",
    "ClipTextComponent",
    "Component",
    "DecoderComponent",
    "FusionComponent",
    "LayerCount",
    "Size",
    "TransformerSizes",
    "VisionTransformerComponent",
]

#: kind -> configuration; the one place where kinds are listed.
COMPONENTS: dict[str, type[Component]] = {
    "vision.vit": VisionTransformerComponent,
    "vision.clip": VisionTransformerComponent,
    "text.clip": ClipTextComponent,
    "text.decoder": DecoderComponent,
    "fusion.late": FusionComponent,
    "fusion.gated": FusionComponent,
    "fusion.attention": FusionComponent,
}
