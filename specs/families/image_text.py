"""Pictures and a text in, text out: an image tower, a projector and a decoder with a cache. Four graphs.

image -> image_features -> image_embeddings;  prefill puts these where the text has its image tokens
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import CausalComponent, Component, ProjectorComponent, VisionTransformerComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_model_graph
from specs.families.classification import make_image
from specs.families.generation import check_positions, list_decoder_graphs
from specs.schema import Dim, Spec


@final
class ImageTextToTextFamily(Family):
    """A `vision` tower without pooling, `fusion.projector`, and a decoder."""

    kind = "image-text-to-text"
    title = "an image tower, a projector and a decoder"
    roles: ClassVar = {
        "image_encoder": ("vision.clip", "vision.siglip", "vision.vit"),
        "projector": ("fusion.projector",),
        "decoder": ("text.decoder", "text.gpt2", "text.neox"),
    }
    dims: ClassVar = {
        "batch": BATCH,
        "tokens": Dim(min=1, opt=640, max=1024),
        "image_tokens": Dim(min=1, opt=576, max=1024),
        "cache": Dim(min=16, opt=1024, max=2048),
    }
    objectives = ("autoregressive",)

    def can_play(self, role: str, component: Component) -> bool:
        pooled = isinstance(component, VisionTransformerComponent) and component.resolved_pooling != "none"
        return super().can_play(role, component) and not pooled

    def check(self, spec: Spec, roles: Roles) -> None:
        check_positions(spec, roles["decoder"], {**self.dims, **spec.dims})
        tower, projector, decoder = get_parts(spec.components, roles)
        where = f"components.{roles['projector']}"
        if any(layer > tower.num_layers for layer in projector.feature_layers):
            raise SpecError(
                "the projector reads a layer that the tower has not",
                where=f"{where}.feature_layers",
                got=str(max(projector.feature_layers)),
                allowed=f"0 to {tower.num_layers}",
                fix="0 is what the first layer reads, num_layers what the last one leaves",
            )
        if projector.skip_tokens >= tower.num_tokens:
            raise SpecError(
                "the projector leaves every token of the tower away",
                where=f"{where}.skip_tokens",
                got=str(projector.skip_tokens),
                allowed=f"0 to {tower.num_tokens - 1}",
            )
        if projector.image_token >= decoder.vocab_size:
            raise SpecError(
                "the image token is outside the decoder's vocabulary",
                where=f"{where}.image_token",
                got=str(projector.image_token),
                allowed=f"0 to {decoder.vocab_size - 1}",
            )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        tower, projector, decoder = get_parts(components, roles)
        features = make_float(
            "image_features", "batch", count_image_tokens(tower, projector), measure(tower, projector)
        )
        embeddings = make_float("image_embeddings", "batch", features.shape[1], decoder.hidden_size)
        given = make_float("image_embeddings", "batch", "image_tokens", decoder.hidden_size)
        return (
            make_model_graph(roles["image_encoder"], (make_image(tower),), (features,)),
            make_model_graph(roles["projector"], (features,), (embeddings,)),
            *list_decoder_graphs(decoder, roles["decoder"], given=(given,)),
        )

    def count_parameters(self, components: Components, roles: Roles) -> dict[str, int]:
        tower, projector, decoder = get_parts(components, roles)
        width, inner = measure(tower, projector), decoder.hidden_size
        counts = {name: one.count_parameters() for name, one in components.items() if name != roles["projector"]}
        return counts | {roles["projector"]: (width + inner) * inner + 2 * inner * projector.bias}

    def count_macs(self, components: Components, roles: Roles, tokens: int) -> dict[str, int]:
        tower, projector, decoder = get_parts(components, roles)
        products = (measure(tower, projector) + decoder.hidden_size) * decoder.hidden_size
        counts = {name: one.count_macs(tokens) for name, one in components.items() if name != roles["projector"]}
        return counts | {roles["projector"]: count_image_tokens(tower, projector) * products}


def get_parts(
    components: Components, roles: Roles
) -> tuple[VisionTransformerComponent, ProjectorComponent, CausalComponent]:
    """Tower, projector and decoder."""
    return (
        cast(VisionTransformerComponent, components[roles["image_encoder"]]),
        cast(ProjectorComponent, components[roles["projector"]]),
        cast(CausalComponent, components[roles["decoder"]]),
    )


def measure(tower: VisionTransformerComponent, projector: ProjectorComponent) -> int:
    """Width of the features that the projector reads."""
    return tower.hidden_size * max(1, len(projector.feature_layers))


def count_image_tokens(tower: VisionTransformerComponent, projector: ProjectorComponent) -> int:
    """Tokens that one picture becomes."""
    return tower.num_tokens - projector.skip_tokens
