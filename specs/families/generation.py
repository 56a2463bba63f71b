"""Text decoders: two graphs over one set of weights. Prefill reads a prompt, decode one token against a cache."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import DecoderComponent
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_lengths
from specs.schema import Dim, TensorSpec


@final
class TextGenerationFamily(Family):
    """`text.decoder`."""

    kind = "text-generation"
    title = "a text decoder"
    roles: ClassVar = {"decoder": ("text.decoder",)}
    dims: ClassVar = {"batch": BATCH, "tokens": Dim(min=1, opt=128, max=1024), "cache": Dim(min=16, opt=1024, max=2048)}
    objectives = ("autoregressive",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["decoder"]
        config = cast(DecoderComponent, components[name])
        logits = make_float("logits", "batch", config.vocab_size)
        return (
            GraphSpec(
                name=f"{name}.prefill",
                component=name,
                file_stem="prefill",
                inputs=(make_ids("token_ids", "batch", "tokens", vocab_size=config.vocab_size), make_lengths()),
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


def list_cache(config: DecoderComponent, prefix: str, capacity: str) -> tuple[TensorSpec, ...]:
    """Keys and values by layer, each [batch, kv heads, capacity, head dim]."""
    return tuple(
        make_float(f"{prefix}{what}_{layer}", "batch", config.kv_heads, capacity, config.head_width)
        for layer in range(config.num_layers)
        for what in ("keys", "values")
    )
