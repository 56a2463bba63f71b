"""Text decoders: two graphs over one set of weights. Prefill reads a prompt, decode one token against a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast, final

from specs.components import CausalComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_lengths
from specs.schema import Dim, Spec, TensorSpec


@final
class TextGenerationFamily(Family):
    """A decoder with a key/value cache."""

    kind = "text-generation"
    title = "a text decoder"
    roles: ClassVar = {"decoder": ("text.decoder", "text.gpt2", "text.neox")}
    dims: ClassVar = {"batch": BATCH, "tokens": Dim(min=1, opt=128, max=1024), "cache": Dim(min=16, opt=1024, max=2048)}
    objectives = ("autoregressive",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["decoder"]
        return list_decoder_graphs(cast(CausalComponent, components[name]), name)

    def check(self, spec: Spec, roles: Roles) -> None:
        check_positions(spec, roles["decoder"], {**self.dims, **spec.dims})


def list_decoder_graphs(
    config: CausalComponent, name: str, *, given: tuple[TensorSpec, ...] = ()
) -> tuple[GraphSpec, GraphSpec]:
    """Prefill and decode of a decoder that is called `name`.

    Args:
        given: what prefill takes beside the text.
    """
    logits = make_float("logits", "batch", config.vocab_size)
    return (
        GraphSpec(
            name=f"{name}.prefill",
            component=name,
            file_stem="prefill",
            inputs=(make_ids("token_ids", "batch", "tokens", vocab_size=config.vocab_size), make_lengths(), *given),
            outputs=(logits, *list_cache(config, "", "tokens")),
        ),
        GraphSpec(
            name=f"{name}.decode",
            component=name,
            file_stem="decode",
            inputs=(
                make_ids("token_ids", "batch", 1, vocab_size=config.vocab_size),
                make_lengths(),
                *list_cache(config, "past_", "cache"),
            ),
            outputs=(logits, *list_cache(config, "", "cache")),
        ),
    )


def check_positions(spec: Spec, name: str, dims: Mapping[str, Dim]) -> None:
    """Refuse a prompt or a cache that is longer than the decoder has positions."""
    limit = cast(CausalComponent, spec.components[name]).max_positions
    for dim in ("tokens", "cache"):
        if limit is not None and dims[dim].max > limit:
            raise SpecError(
                f"'{dim}' reaches beyond the positions that the decoder has",
                where=f"dims.{dim}.max",
                got=str(dims[dim].max),
                allowed=f"at most {limit}, the component's max_positions",
                fix=f"{dim}: {{max: {limit}}}",
            )


def list_cache(config: CausalComponent, prefix: str, capacity: str) -> tuple[TensorSpec, ...]:
    """Keys and values by layer, each [batch, kv heads, capacity, head dim]."""
    return tuple(
        make_float(f"{prefix}{what}_{layer}", "batch", config.kv_heads, capacity, config.head_width)
        for layer in range(config.num_layers)
        for what in ("keys", "values")
    )
