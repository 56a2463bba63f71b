"""Text to music: a text encoder, a decoder of codes, and the codec that makes sound of them."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components.audio.encodec import EncodecComponent
from specs.components.audio.musicgen import MusicgenComponent
from specs.components.text.t5 import T5Component
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
from specs.families.codec import make_decode_graph
from specs.schema import Dim, Spec, TensorSpec


@final
class TextToAudioFamily(Family):
    """`text.t5`, `audio.musicgen` and `audio.encodec_decoder`.

    Guidance doubles the rows of a step: `batch` counts them.
    """

    kind = "text-to-audio"
    title = "a text encoder, a decoder of codes and an audio codec"
    roles: ClassVar = {
        "text_encoder": ("text.t5",),
        "decoder": ("audio.musicgen",),
        "codec": ("audio.encodec_decoder",),
    }
    dims: ClassVar = {
        "batch": BATCH.model_copy(update={"opt": 2}),
        "text_tokens": Dim(min=1, opt=32, max=256),
        "prompt_frames": Dim(min=1, opt=1, max=512),
        "cache": Dim(min=16, opt=512, max=2048),
        "frames": Dim(min=1, opt=500, max=2048),
    }
    objectives = ("autoregressive",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        graphs = {
            roles["text_encoder"]: _make_text_graphs(roles["text_encoder"], components),
            roles["decoder"]: _make_decoder_graphs(roles["decoder"], components),
            roles["codec"]: _make_codec_graphs(roles, components),
        }
        return tuple(graph for name in components for graph in graphs[name])

    def check(self, spec: Spec, roles: Roles) -> None:
        text = cast(T5Component, spec.components[roles["text_encoder"]])
        decoder = cast(MusicgenComponent, spec.components[roles["decoder"]])
        codec = cast(EncodecComponent, spec.components[roles["codec"]])
        facts = (
            ("decoder", "text_size", decoder.text_size, text.hidden_size, "hidden_size of the text encoder"),
            ("codec", "num_codebooks", codec.num_codebooks, decoder.channel_codebooks, "num_codebooks of the decoder"),
            ("codec", "codebook_size", codec.codebook_size, decoder.vocab_size, "vocab_size of the decoder"),
        )
        for role, key, got, wanted, what in facts:
            if got == wanted or (role == "codec" and got > wanted):
                continue
            raise SpecError(
                f"{roles[role]}.{key} {got} does not go with the parts beside it",
                where=f"components.{roles[role]}.{key}",
                allowed=f"{wanted}{' or more' if role == 'codec' else ''}: {what}",
                fix="correct one of the two",
            )
        if codec.audio_channels != 1:
            raise SpecError(
                "the codec of a music model makes one channel, and stereo runs it twice",
                where=f"components.{roles['codec']}.audio_channels",
                got=str(codec.audio_channels),
                allowed="1",
                fix="set audio_channels of the decoder instead",
            )


def _make_text_graphs(name: str, components: Components) -> tuple[GraphSpec, ...]:
    config = cast(T5Component, components[name])
    ids = make_ids("token_ids", "batch", "text_tokens", vocab_size=config.vocab_size)
    states = make_float("states", "batch", "text_tokens", config.hidden_size)
    return (make_model_graph(name, (ids, make_lengths()), (states,)),)


def _make_decoder_graphs(name: str, components: Components) -> tuple[GraphSpec, ...]:
    config = cast(MusicgenComponent, components[name])
    logits = make_float("logits", "batch", config.num_codebooks, config.vocab_size)
    text_lengths = make_lengths("text_lengths")

    def make_codes(frames: int | str) -> TensorSpec:
        return make_ids("codes", "batch", config.num_codebooks, frames, vocab_size=config.vocab_size + 1)

    states = make_float("states", "batch", "text_tokens", config.text_size)
    cross = _list_pairs(config, "cross_", "text_tokens")
    return (
        GraphSpec(
            name=f"{name}.prefill",
            component=name,
            file_stem="prefill",
            inputs=(make_codes("prompt_frames"), states, text_lengths),
            outputs=(logits, *_list_pairs(config, "", "prompt_frames"), *cross),
        ),
        GraphSpec(
            name=f"{name}.decode",
            component=name,
            file_stem="decode",
            inputs=(make_codes(1), make_lengths(), text_lengths, *_list_pairs(config, "past_", "cache"), *cross),
            outputs=(logits, *_list_pairs(config, "", "cache")),
        ),
    )


def _make_codec_graphs(roles: Roles, components: Components) -> tuple[GraphSpec, ...]:
    decoder = cast(MusicgenComponent, components[roles["decoder"]])
    config = cast(EncodecComponent, components[roles["codec"]])
    return (make_decode_graph(roles["codec"], config, codebooks=decoder.channel_codebooks),)


def _list_pairs(config: MusicgenComponent, prefix: str, size: str) -> tuple[TensorSpec, ...]:
    """Keys and values by layer, each [batch, heads, size, head dim]."""
    return tuple(
        make_float(f"{prefix}{what}_{layer}", "batch", config.num_heads, size, config.head_dim)
        for layer in range(config.num_layers)
        for what in ("keys", "values")
    )
