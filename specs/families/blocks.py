"""The block generator: a stream of blocks, each of a mode and a shape that are predicted too.

<mode>.embed, structure.embed    token, position in its block -> x
decoder.prefill, decoder.decode  x, cache -> state, cache
structure.head                   state -> which mode (or the end), which size
<mode>.head                      state -> which token of the mode's own vocabulary
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import Component
from specs.components.blocks import BlockDecoderComponent, ModeComponent, StructureComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_lengths
from specs.schema import Dim, Spec, TensorSpec


@final
class BlockGenerationFamily(Family):
    """`blocks.decoder`, `blocks.structure`, and one of each mode."""

    kind = "block-generation"
    title = "a block generator"
    roles: ClassVar = {
        "decoder": ("blocks.decoder",),
        "structure": ("blocks.structure",),
        "text": ("blocks.text",),
        "image": ("blocks.image",),
    }
    dims: ClassVar = {"batch": BATCH, "tokens": Dim(min=1, opt=64, max=512), "cache": Dim(min=16, opt=512, max=2048)}
    objectives = ("autoregressive",)

    def check(self, spec: Spec, roles: Roles) -> None:
        decoder = cast(BlockDecoderComponent, spec.components[roles["decoder"]])
        modes = list_modes(spec.components)
        largest = max(size for mode in modes.values() for size in mode.max_shape)
        wanted = [(roles["structure"], "num_modes", len(modes), "the number of modes")]
        wanted += [(roles["structure"], "max_size", largest, "the largest size of any mode's max_shape")]
        wanted += [
            (name, "hidden_size", decoder.hidden_size, f"{roles['decoder']}.hidden_size")
            for name in (roles["structure"], *modes)
        ]
        for name, key, size, source in wanted:
            given = getattr(spec.components[name], key)
            if given != size:
                raise SpecError(
                    f"{name}.{key} {given} is not {source}",
                    where=f"components.{name}.{key}",
                    allowed=str(size),
                    fix="give both the same",
                )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        graphs: list[GraphSpec] = []
        for name, component in components.items():
            if isinstance(component, BlockDecoderComponent):
                graphs += _list_decoder_graphs(name, component)
            else:
                graphs += _list_token_graphs(name, component)
        return tuple(graphs)


def list_modes(components: Components) -> dict[str, ModeComponent]:
    """The modes, in the order in which `structure` counts them."""
    return {name: part for name, part in components.items() if isinstance(part, ModeComponent)}


def _list_token_graphs(name: str, component: Component) -> tuple[GraphSpec, GraphSpec]:
    config = cast("StructureComponent | ModeComponent", component)
    ids = make_ids("token_ids", "batch", "tokens", vocab_size=config.vocab_size)
    positions = TensorSpec(name="positions", dtype="int64", shape=("batch", "tokens"), low=0, high=64)
    outputs = (
        (
            make_float("mode_logits", "batch", config.num_modes + 1),
            make_float("size_logits", "batch", config.max_size),
        )
        if isinstance(config, StructureComponent)
        else (make_float("logits", "batch", config.vocab_size),)
    )
    return (
        GraphSpec(
            name=f"{name}.embed",
            component=name,
            file_stem="embed",
            inputs=(ids, positions),
            outputs=(make_float("x", "batch", "tokens", config.hidden_size),),
        ),
        GraphSpec(
            name=f"{name}.head",
            component=name,
            file_stem="head",
            inputs=(make_float("state", "batch", config.hidden_size),),
            outputs=outputs,
        ),
    )


def _list_decoder_graphs(name: str, config: BlockDecoderComponent) -> tuple[GraphSpec, GraphSpec]:
    def cache(prefix: str, capacity: str) -> tuple[TensorSpec, ...]:
        return tuple(
            make_float(f"{prefix}{what}_{layer}", "batch", config.num_heads, capacity, config.head_width)
            for layer in range(config.num_layers)
            for what in ("keys", "values")
        )

    state = make_float("state", "batch", config.hidden_size)
    return (
        GraphSpec(
            name=f"{name}.prefill",
            component=name,
            file_stem="prefill",
            inputs=(make_float("x", "batch", "tokens", config.hidden_size), make_lengths()),
            outputs=(state, *cache("", "tokens")),
        ),
        GraphSpec(
            name=f"{name}.decode",
            component=name,
            file_stem="decode",
            inputs=(make_float("x", "batch", 1, config.hidden_size), make_lengths(), *cache("past_", "cache")),
            outputs=(state, *cache("", "cache")),
        ),
    )
