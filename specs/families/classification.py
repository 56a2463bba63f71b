"""Image classifiers: one graph, pixels in, logits out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import Component, PictureComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float
from specs.families.pictures import ARCHITECTURES, TOWERS, make_picture_graph
from specs.schema import Spec


@final
class ImageClassificationFamily(Family):
    """A `vision` tower with `num_classes`."""

    kind = "image-classification"
    title = "an image classifier"
    roles: ClassVar = {"classifier": TOWERS}
    dims: ClassVar = {"batch": BATCH}
    architectures = ARCHITECTURES
    objectives = ("classification",)

    def can_play(self, role: str, component: Component) -> bool:
        return isinstance(component, PictureComponent) and component.num_classes is not None

    def check(self, spec: Spec, roles: Roles) -> None:
        check_architecture(spec, spec.components[roles["classifier"]])

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["classifier"]
        config = cast(PictureComponent, components[name])
        assert config.num_classes
        logits = make_float("logits", "batch", config.num_classes)
        return (make_picture_graph(name, config, logits),)


def check_architecture(spec: Spec, component: Component) -> None:
    """Refuse an `architecture` that is not the tower's: convolutions are no transformer.

    Raises:
        SpecError: names what the kind is.
    """
    allowed = cast(PictureComponent, component).ARCHITECTURES
    if spec.architecture not in allowed:
        raise SpecError(
            f"architecture '{spec.architecture}' does not describe '{component.kind}'",
            where="architecture",
            allowed=", ".join(allowed),
            fix=f"write 'architecture: {allowed[0]}', or take another kind",
        )
