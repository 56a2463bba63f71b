"""What a spec's components add up to: its family, its graphs with their inputs and outputs, and its size.

A *family* is a combination of components that this tool knows how to drive. It decides which graphs there are, which
dynamic dimensions they have, and how a host uses them; `specs/handlers` adds the torch modules. Nothing here needs
torch, so that `show` and the target check run on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from specs.components import (
    ClipTextComponent,
    Component,
    DecoderComponent,
    FusionComponent,
    VisionTransformerComponent,
)
from specs.errors import SpecError
from specs.schema import Dim, Spec, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Family:
    """A combination of component kinds, by role; and the dims such a spec has, with what they are when not given."""

    kind: str  # names a handler, and a pipeline of the runtime
    title: str
    roles: Mapping[str, tuple[str, ...]]  # role -> the kinds that can play it; a spec has exactly one of each
    dims: Mapping[str, Dim]
    architectures: tuple[str, ...] = ("transformer", "hybrid")


_BATCH = Dim(min=1, opt=1, max=8)

FAMILIES: tuple[Family, ...] = (
    Family(
        kind="image-classification",
        title="an image classifier",
        roles={"classifier": ("vision.vit",)},
        dims={"batch": _BATCH},
    ),
    Family(
        kind="text-generation",
        title="a text decoder",
        roles={"decoder": ("text.decoder",)},
        dims={"batch": _BATCH, "tokens": Dim(min=1, opt=128, max=1024), "cache": Dim(min=16, opt=1024, max=2048)},
    ),
    Family(
        kind="image-text-similarity",
        title="two towers and a fusion",
        roles={
            "image_encoder": ("vision.clip",),
            "text_encoder": ("text.clip",),
            "fusion": ("fusion.late", "fusion.gated", "fusion.attention"),
        },
        dims={"batch": _BATCH},
    ),
)


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One graph of a bundle: its unique name, the component it belongs to, and what goes in and comes out."""

    name: str
    component: str
    file_stem: str  # "model", or "prefill" and "decode"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def find_family(components: Mapping[str, Component]) -> Family:
    """The family whose roles these components fill.

    Raises:
        SpecError: no family has this combination; lists those there are.
    """
    kinds = sorted(component.kind for component in components.values())
    for family in FAMILIES:
        if len(kinds) == len(family.roles) and all(
            sum(kind in allowed for kind in kinds) == 1 for allowed in family.roles.values()
        ):
            return family
    raise SpecError(
        f"no model is made of these components: {', '.join(kinds)}",
        allowed="; ".join(
            f"{family.title} ({' + '.join(' or '.join(kinds) for kinds in family.roles.values())})"
            for family in FAMILIES
        ),
        fix="add, remove or change components until they are one of these",
    )


def name_roles(spec: Spec) -> dict[str, str]:
    """role -> the name of the component that plays it."""
    roles = find_family(spec.components).roles
    return {
        role: name
        for role, kinds in roles.items()
        for name, component in spec.components.items()
        if component.kind in kinds
    }


def list_graphs(spec: Spec) -> tuple[GraphSpec, ...]:
    """Every graph that `spec` becomes, in the order in which they are exported."""
    graphs: list[GraphSpec] = []
    for name, component in spec.components.items():
        if isinstance(component, DecoderComponent):
            graphs += _list_decoder_graphs(name, component)
        else:
            inputs, outputs = _list_tensors(spec, component)
            graphs.append(GraphSpec(name=name, component=name, file_stem="model", inputs=inputs, outputs=outputs))
    return tuple(graphs)


def _float(name: str, *shape: int | str, low: float = -1.0, high: float = 1.0) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape, low=low, high=high)


def _list_tensors(spec: Spec, component: Component) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if isinstance(component, VisionTransformerComponent):
        size = component.image_size
        image = _float("image", "batch", component.num_channels, size, size, low=0.0)
        if component.num_classes:
            return (image,), (_float("logits", "batch", component.num_classes),)
        return (image,), (_float("image_features", "batch", component.hidden_size),)
    if isinstance(component, ClipTextComponent):
        shape = ("batch", component.context_length)
        ids = TensorSpec(name="token_ids", dtype="int64", shape=shape, low=0, high=component.vocab_size)
        return (ids,), (_float("text_features", "batch", component.hidden_size),)
    assert isinstance(component, FusionComponent), component.kind
    image_size, text_size = tower_widths(spec)
    inputs = (_float("image_features", "batch", image_size), _float("text_features", "batch", text_size))
    width = component.projection_size
    if component.kind == "fusion.late":
        unit = (_float("image_embedding", "batch", width), _float("text_embedding", "batch", width))
        return inputs, (*unit, _float("similarity", "batch", "batch"))
    if component.kind == "fusion.gated":
        return inputs, (_float("embedding", "batch", width),)
    presence = TensorSpec(name="presence", dtype="bool", shape=("batch", 2), low=0, high=2)
    return (*inputs, presence), (_float("embedding", "batch", width), _float("weights", "batch", 2))


def _list_decoder_graphs(name: str, component: DecoderComponent) -> tuple[GraphSpec, GraphSpec]:
    def cache(prefix: str, capacity: str) -> tuple[TensorSpec, ...]:
        return tuple(
            _float(f"{prefix}{what}_{layer}", "batch", component.kv_heads, capacity, component.head_width)
            for layer in range(component.num_layers)
            for what in ("keys", "values")
        )

    def ids(tokens: int | str) -> TensorSpec:
        return TensorSpec(name="token_ids", dtype="int64", shape=("batch", tokens), low=0, high=component.vocab_size)

    lengths = TensorSpec(name="lengths", dtype="int64", shape=("batch",), low=1, high=2)
    logits = _float("logits", "batch", component.vocab_size)
    return (
        GraphSpec(
            name=f"{name}.prefill",
            component=name,
            file_stem="prefill",
            inputs=(ids("tokens"), lengths),
            outputs=(logits, *cache("", "tokens")),
        ),
        GraphSpec(
            name=f"{name}.decode",
            component=name,
            file_stem="decode",
            inputs=(ids(1), lengths, *cache("past_", "cache")),
            outputs=(logits, *cache("", "cache")),
        ),
    )


def tower_widths(spec: Spec) -> tuple[int, int]:
    """Widths of the image and the text features that a fusion joins."""
    roles = name_roles(spec)
    image = cast(VisionTransformerComponent, spec.components[roles["image_encoder"]])
    text = cast(ClipTextComponent, spec.components[roles["text_encoder"]])
    return image.hidden_size, text.hidden_size


def count_parameters(spec: Spec) -> dict[str, int]:
    """Trainable parameters by component, tied tensors counted once."""
    return {
        name: _count_fusion_parameters(component, *tower_widths(spec))
        if isinstance(component, FusionComponent)
        else component.count_parameters()
        for name, component in spec.components.items()
    }


def _count_fusion_parameters(component: FusionComponent, image_size: int, text_size: int) -> int:
    width = component.projection_size
    own = {"fusion.late": 1, "fusion.gated": 2 * width * width + width, "fusion.attention": width}
    return width * (image_size + text_size) + own[component.kind]


def count_macs(spec: Spec, *, tokens: int = 128) -> dict[str, int]:
    """Multiply-accumulates by component of one forward of one sample (`tokens` counts for decoders only)."""
    return {
        name: component.projection_size * sum(tower_widths(spec))
        if isinstance(component, FusionComponent)
        else component.count_macs(tokens)
        for name, component in spec.components.items()
    }
