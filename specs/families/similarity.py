"""An image tower, a text tower, and what joins them: three graphs."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import ClipTextComponent, Component, FusionComponent, VisionTransformerComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_model_graph
from specs.families.pictures import make_picture_graph
from specs.schema import Spec, TensorSpec


@final
class ImageTextSimilarityFamily(Family):
    """A `vision` tower without classes, CLIP's or SigLIP's text tower, and one of `fusion.*`."""

    kind = "image-text-similarity"
    title = "two towers and a fusion"
    roles: ClassVar = {
        "image_encoder": ("vision.clip", "vision.siglip"),
        "text_encoder": ("text.clip", "text.siglip"),
        "fusion": ("fusion.late", "fusion.sigmoid", "fusion.gated", "fusion.attention"),
    }
    dims: ClassVar = {"batch": BATCH}
    objectives = ("contrastive",)

    def can_play(self, role: str, component: Component) -> bool:
        ends_in_features = not isinstance(component, VisionTransformerComponent) or component.num_classes is None
        return super().can_play(role, component) and ends_in_features

    def check(self, spec: Spec, roles: Roles) -> None:
        image, text = measure_towers(spec.components, roles)
        tower = cast(VisionTransformerComponent, spec.components[roles["image_encoder"]])
        if tower.resolved_pooling == "none":
            raise SpecError(
                "a fusion needs pooled features",
                where=f"components.{roles['image_encoder']}.pooling",
                got="pooling none",
                fix="remove the key",
            )
        if spec.components[roles["fusion"]].kind == "fusion.sigmoid" and image != text:
            raise SpecError(
                "fusion.sigmoid compares the towers' features as they are, and these differ in width",
                where=f"components.{roles['fusion']}.kind",
                got=f"{image} of {roles['image_encoder']}, {text} of {roles['text_encoder']}",
                allowed="towers of one width, or fusion.late",
                fix="set projection_size of the text tower to the image tower's hidden_size",
            )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        graphs = {}
        for role, name in roles.items():
            make = {"image_encoder": _make_image_graph, "text_encoder": _make_text_graph, "fusion": _make_fusion_graph}
            graphs[name] = make[role](name, components, roles)
        return tuple(graphs[name] for name in components)

    def count_parameters(self, components: Components, roles: Roles) -> dict[str, int]:
        fusion, widths = roles["fusion"], measure_towers(components, roles)
        return {
            name: count_fusion_parameters(cast(FusionComponent, component), *widths)
            if name == fusion
            else component.count_parameters()
            for name, component in components.items()
        }

    def count_macs(self, components: Components, roles: Roles, tokens: int) -> dict[str, int]:
        fusion, widths = roles["fusion"], measure_towers(components, roles)
        return {
            name: (cast(FusionComponent, component).projection_size or 0) * sum(widths)
            if name == fusion
            else component.count_macs(tokens)
            for name, component in components.items()
        }


def measure_towers(components: Components, roles: Roles) -> tuple[int, int]:
    """Widths of the image and the text features that a fusion joins."""
    image = cast(VisionTransformerComponent, components[roles["image_encoder"]])
    text = cast(ClipTextComponent, components[roles["text_encoder"]])
    return image.feature_size, text.feature_size


def count_fusion_parameters(component: FusionComponent, image_size: int, text_size: int) -> int:
    """Two projections, and what the kind of fusion has of its own."""
    width = component.projection_size or 0
    own = {"fusion.late": 1, "fusion.sigmoid": 2, "fusion.gated": 2 * width * width + width, "fusion.attention": width}
    return width * (image_size + text_size) + own[component.kind]


def _make_image_graph(name: str, components: Components, roles: Roles) -> GraphSpec:
    config = cast(VisionTransformerComponent, components[name])
    return make_picture_graph(name, config, make_float("image_features", "batch", config.feature_size))


def _make_text_graph(name: str, components: Components, roles: Roles) -> GraphSpec:
    config = cast(ClipTextComponent, components[name])
    ids = make_ids("token_ids", "batch", config.context_length, vocab_size=config.vocab_size)
    return make_model_graph(name, (ids,), (make_float("text_features", "batch", config.feature_size),))


def _make_fusion_graph(name: str, components: Components, roles: Roles) -> GraphSpec:
    config = cast(FusionComponent, components[name])
    image_size, text_size = measure_towers(components, roles)
    inputs = (make_float("image_features", "batch", image_size), make_float("text_features", "batch", text_size))
    width = config.projection_size or image_size
    if config.kind in ("fusion.late", "fusion.sigmoid"):
        unit = (make_float("image_embedding", "batch", width), make_float("text_embedding", "batch", width))
        return make_model_graph(name, inputs, (*unit, make_float("similarity", "batch", "batch")))
    embedding = make_float("embedding", "batch", width)
    if config.kind == "fusion.gated":
        return make_model_graph(name, inputs, (embedding,))
    presence = TensorSpec(name="presence", dtype="bool", shape=("batch", 2), low=0, high=2)
    return make_model_graph(name, (*inputs, presence), (embedding, make_float("weights", "batch", 2)))
