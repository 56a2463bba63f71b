"""Image classifiers: one graph, pixels in, logits out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import Component, PictureComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_model_graph
from specs.schema import Dim, Spec, TensorSpec

#: Every kind that looks at one picture: transformers, convolutions, and both.
TOWERS = ("vision.vit", "vision.clip", "vision.siglip", "vision.resnet", "vision.mobilevit")
ARCHITECTURES = ("transformer", "cnn", "hybrid")

#: Of pictures that the graph resizes itself.
PIXEL_DIMS = {"height": Dim(min=1, opt=480, max=2160), "width": Dim(min=1, opt=640, max=3840)}


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
        return (make_model_graph(name, (make_image(config),), (logits,)),)


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


def make_image(config: PictureComponent) -> TensorSpec:
    """Pixels [batch, channels, height, width] in [0, 1); raw ones, uint8 [batch, height, width, channels]."""
    if config.preprocess == "graph":
        shape = ("batch", "height", "width", config.num_channels)
        return TensorSpec(name="pixels", dtype="uint8", shape=shape, low=0, high=256)
    return make_float("image", "batch", config.num_channels, *config.image, low=0.0)
