"""A vision tower alone: one graph, pixels in, an embedding and the features of every token out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import Component, VisionTransformerComponent
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_model_graph
from specs.families.classification import make_image


@final
class ImageEmbeddingFamily(Family):
    """A `vision` tower without `num_classes`."""

    kind = "image-embedding"
    title = "an image encoder"
    roles: ClassVar = {"encoder": ("vision.vit", "vision.clip", "vision.siglip")}
    dims: ClassVar = {"batch": BATCH}
    objectives = ("contrastive", "masked", "classification")

    def can_play(self, role: str, component: Component) -> bool:
        return isinstance(component, VisionTransformerComponent) and component.num_classes is None

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["encoder"]
        config = cast(VisionTransformerComponent, components[name])
        embedding = make_float("embedding", "batch", config.feature_size)
        tokens = make_float("token_features", "batch", config.num_tokens, config.hidden_size)
        outputs = (tokens,) if config.resolved_pooling == "none" else (embedding, tokens)
        return (make_model_graph(name, (make_image(config),), outputs),)
