"""An image tower, a text tower, and what joins them: three graphs."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import ClipTextComponent, FusionComponent, VisionTransformerComponent
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_model_graph
from specs.families.classification import make_image
from specs.schema import TensorSpec


@final
class ImageTextSimilarityFamily(Family):
    """`vision.clip`, `text.clip`, and one of `fusion.*`."""

    kind = "image-text-similarity"
    title = "two towers and a fusion"
    roles: ClassVar = {
        "image_encoder": ("vision.clip",),
        "text_encoder": ("text.clip",),
        "fusion": ("fusion.late", "fusion.gated", "fusion.attention"),
    }
    dims: ClassVar = {"batch": BATCH}
    objectives = ("contrastive",)

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
            name: cast(FusionComponent, component).projection_size * sum(widths)
            if name == fusion
            else component.count_macs(tokens)
            for name, component in components.items()
        }


def measure_towers(components: Components, roles: Roles) -> tuple[int, int]:
    """Widths of the image and the text features that a fusion joins."""
    image = cast(VisionTransformerComponent, components[roles["image_encoder"]])
    text = cast(ClipTextComponent, components[roles["text_encoder"]])
    return image.hidden_size, text.hidden_size


def count_fusion_parameters(component: FusionComponent, image_size: int, text_size: int) -> int:
    """Two projections, and what the kind of fusion has of its own."""
    width = component.projection_size
    own = {"fusion.late": 1, "fusion.gated": 2 * width * width + width, "fusion.attention": width}
    return width * (image_size + text_size) + own[component.kind]


def _make_image_graph(name: str, components: Components, roles: Roles) -> GraphSpec:
    config = cast(VisionTransformerComponent, components[name])
    return make_model_graph(name, (make_image(config),), (make_float("image_features", "batch", config.hidden_size),))


def _make_text_graph(name: str, components: Components, roles: Roles) -> GraphSpec:
    config = cast(ClipTextComponent, components[name])
    ids = make_ids("token_ids", "batch", config.context_length, vocab_size=config.vocab_size)
    return make_model_graph(name, (ids,), (make_float("text_features", "batch", config.hidden_size),))


def _make_fusion_graph(name: str, components: Components, roles: Roles) -> GraphSpec:
    config = cast(FusionComponent, components[name])
    image_size, text_size = measure_towers(components, roles)
    inputs = (make_float("image_features", "batch", image_size), make_float("text_features", "batch", text_size))
    width = config.projection_size
    if config.kind == "fusion.late":
        unit = (make_float("image_embedding", "batch", width), make_float("text_embedding", "batch", width))
        return make_model_graph(name, inputs, (*unit, make_float("similarity", "batch", "batch")))
    embedding = make_float("embedding", "batch", width)
    if config.kind == "fusion.gated":
        return make_model_graph(name, inputs, (embedding,))
    presence = TensorSpec(name="presence", dtype="bool", shape=("batch", 2), low=0, high=2)
    return make_model_graph(name, (*inputs, presence), (embedding, make_float("weights", "batch", 2)))
