"""Image classifiers: one graph, pixels in, logits out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import Component, VisionTransformerComponent
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_model_graph
from specs.schema import TensorSpec


@final
class ImageClassificationFamily(Family):
    """A `vision` tower with `num_classes`."""

    kind = "image-classification"
    title = "an image classifier"
    roles: ClassVar = {"classifier": ("vision.vit", "vision.clip", "vision.siglip")}
    dims: ClassVar = {"batch": BATCH}
    objectives = ("classification",)

    def can_play(self, role: str, component: Component) -> bool:
        return isinstance(component, VisionTransformerComponent) and component.num_classes is not None

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["classifier"]
        config = cast(VisionTransformerComponent, components[name])
        assert config.num_classes
        logits = make_float("logits", "batch", config.num_classes)
        return (make_model_graph(name, (make_image(config),), (logits,)),)


def make_image(config: VisionTransformerComponent) -> TensorSpec:
    """Pixels [batch, channels, height, width] in [0, 1)."""
    return make_float("image", "batch", config.num_channels, *config.image, low=0.0)
