"""A vision tower alone: one graph, pixels in, an embedding and the features of every token or place out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import Component, PictureComponent
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float
from specs.families.classification import check_architecture
from specs.families.pictures import ARCHITECTURES, TOWERS, make_picture_graph
from specs.schema import Spec


@final
class ImageEmbeddingFamily(Family):
    """A `vision` tower without `num_classes`."""

    kind = "image-embedding"
    title = "an image encoder"
    roles: ClassVar = {"encoder": TOWERS}
    dims: ClassVar = {"batch": BATCH}
    architectures = ARCHITECTURES
    objectives = ("contrastive", "masked", "classification")

    def can_play(self, role: str, component: Component) -> bool:
        return isinstance(component, PictureComponent) and component.num_classes is None

    def check(self, spec: Spec, roles: Roles) -> None:
        check_architecture(spec, spec.components[roles["encoder"]])

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["encoder"]
        config = cast(PictureComponent, components[name])
        outputs = tuple(make_float(output, "batch", *shape) for output, shape in config.features.items())
        return (make_picture_graph(name, config, *outputs),)
