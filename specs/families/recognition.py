"""Speech recognition by an encoder and a decoder: four graphs, of which the decoder's three share their weights."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import WhisperDecoderComponent, WhisperEncoderComponent
from specs.errors import SpecError
from specs.families.base import (
    BATCH,
    Components,
    Family,
    GraphSpec,
    Roles,
    make_float,
    make_ids,
    make_lengths,
    make_model_graph,
)
from specs.schema import Dim, Spec, TensorSpec


@final
class SpeechRecognitionFamily(Family):
    """`audio.whisper` and `text.whisper`."""

    kind = "speech-recognition"
    title = "an encoder of sound and a decoder of text"
    roles: ClassVar = {"encoder": ("audio.whisper",), "decoder": ("text.whisper",)}
    dims: ClassVar = {"batch": BATCH, "tokens": Dim(min=1, opt=4, max=224), "cache": Dim(min=8, opt=224, max=448)}
    objectives = ("autoregressive",)

    def check(self, spec: Spec, roles: Roles) -> None:
        encoder, decoder = get_sides(spec.components, roles)
        for key in ("hidden_size", "source_positions"):
            if getattr(encoder, key) != getattr(decoder, key):
                raise SpecError(
                    f"encoder and decoder have different {key}, and cross attention joins them",
                    where=f"components.{roles['decoder']}.{key}",
                    got=f"{getattr(encoder, key)} and {getattr(decoder, key)}",
                    fix="make them equal",
                )
        for name in ("tokens", "cache"):
            longest = {**self.dims, **spec.dims}[name].max
            if longest > decoder.max_positions:
                raise SpecError(
                    f"dims.{name}.max is beyond the positions that the decoder has",
                    where=f"dims.{name}.max",
                    got=str(longest),
                    allowed=f"1 to {decoder.max_positions}",
                    fix=f"set dims.{name}.max",
                )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        encoder, decoder = get_sides(components, roles)
        name, vocab_size = roles["decoder"], decoder.vocab_size
        samples = make_float("samples", "batch", encoder.num_samples)
        states = make_float("encoder_states", "batch", encoder.source_positions, encoder.hidden_size)
        cross = list_pairs(decoder, "cross_", decoder.source_positions)
        logits = make_float("logits", "batch", vocab_size)

        def make_graph(stem: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphSpec:
            return GraphSpec(name=f"{name}.{stem}", component=name, file_stem=stem, inputs=inputs, outputs=outputs)

        prompt = make_ids("token_ids", "batch", "tokens", vocab_size=vocab_size), make_lengths()
        token = make_ids("token_ids", "batch", 1, vocab_size=vocab_size), make_lengths()
        return (
            make_model_graph(roles["encoder"], (samples,), (states,)),
            make_graph("cross", (states,), cross),
            make_graph("prefill", (*prompt, *cross), (logits, *list_pairs(decoder, "", "tokens"))),
            make_graph(
                "decode",
                (*token, *list_pairs(decoder, "past_", "cache"), *cross),
                (logits, *list_pairs(decoder, "", "cache")),
            ),
        )


def get_sides(components: Components, roles: Roles) -> tuple[WhisperEncoderComponent, WhisperDecoderComponent]:
    """Encoder and decoder."""
    encoder, decoder = components[roles["encoder"]], components[roles["decoder"]]
    return cast(WhisperEncoderComponent, encoder), cast(WhisperDecoderComponent, decoder)


def list_pairs(config: WhisperDecoderComponent, prefix: str, size: int | str) -> tuple[TensorSpec, ...]:
    """Keys and values by layer, each [batch, heads, size, head dim]."""
    return tuple(
        make_float(f"{prefix}{what}_{layer}", "batch", config.num_heads, size, config.head_width)
        for layer in range(config.num_layers)
        for what in ("keys", "values")
    )
