"""MusicGen: T5's encoder, a decoder of codes, EnCodec's decoder; one folder.

text_encoder. -> enc_to_dec_proj -> decoder.model.decoder.{embed_tokens.Q, layers.N.{self_attn, encoder_attn, fc1,
fc2}, layer_norm}, decoder.lm_heads.Q -> audio_encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.encodec import CODEC_UNUSED, make_codec, map_codec
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, stack, stack_linear, take_linear, take_module
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import require_causal
from exporters.checkpoints.parts.generation import require_plain_generation
from exporters.checkpoints.parts.t5 import explain_t5, make_t5, map_t5
from exporters.checkpoints.tokenizers.assets import describe_tokenizer
from specs.components.audio.encodec import EncodecComponent
from specs.components.audio.musicgen import MusicgenComponent
from specs.components.text.t5 import T5Component
from specs.errors import CheckpointError
from specs.schema import Spec

_DECODER = "decoder.model.decoder"
_NORMS = {
    "attention_norm": "self_attn_layer_norm",
    "cross_norm": "encoder_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
}
_LINEARS = {
    "attention.out": "self_attn.out_proj",
    "cross.query": "encoder_attn.q_proj",
    "cross.out": "encoder_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}
_STACKED = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "cross.pair": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}


@final
class MusicgenImporter(Importer):
    """`MusicgenForConditionalGeneration`."""

    title = "MusicGen"
    model_types = ("musicgen",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        parts = {name: config.take_config(name) for name in ("text_encoder", "decoder", "audio_encoder")}
        for name, kind in (("text_encoder", "t5"), ("audio_encoder", "encodec")):
            parts[name].require("model_type", (kind,), None)
        text = make_t5(parts["text_encoder"])
        decoder = _make_decoder(parts["decoder"], folder.find_config("generation_config.json"), text["hidden_size"])
        tokenizer = describe_tokenizer(folder)
        return {
            "modality": {"inputs": ["text"], "outputs": ["audio"]},
            "objective": "autoregressive",
            "components": {
                "text_encoder": text,
                "decoder": decoder,
                "codec": make_codec(parts["audio_encoder"], kind="audio.encodec_decoder"),
            },
            **({"tokenizers": {"text_encoder": tokenizer}} if tokenizer else {}),
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        text = cast(T5Component, spec.components["text_encoder"])
        decoder = cast(MusicgenComponent, spec.components["decoder"])
        codec = cast(EncodecComponent, spec.components["codec"])
        return {
            **map_t5(text, folder.tensors, ours="text_encoder", theirs="text_encoder."),
            **_map_decoder(decoder),
            **map_codec(codec, folder.tensors, ours="codec", theirs="audio_encoder."),
        }

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return {
            **explain_t5("text_encoder."),
            **{f"audio_encoder.{name}": reason for name, reason in CODEC_UNUSED.items()},
            "audio_encoder.encoder.*": "music is made, not read",
            f"{_DECODER}.embed_positions.weights": "computed",
        }


def _make_decoder(config: Config, generation: Config, text_size: int) -> dict[str, Any]:
    require_causal(config)
    hidden_size = config.take("hidden_size", int, 1024)
    if "cross_attention_hidden_size" in config:  # says that there is no projection, which then must not be needed
        config.require("cross_attention_hidden_size", (text_size,), text_size)
        config.require("hidden_size", (text_size,), 1024)
    vocab_size = config.take("vocab_size", int, 2048)
    _check_start(generation, config, vocab_size)
    _refuse_end(generation, vocab_size)
    require_plain_generation(generation)
    return {
        "kind": "audio.musicgen",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": config.take("num_hidden_layers", int, 24),
        "num_heads": config.take("num_attention_heads", int, 16),
        "mlp_size": config.take("ffn_dim", int, 4096),
        "num_codebooks": config.take("num_codebooks", int, 4),
        "audio_channels": config.take("audio_channels", int, 1),
        "text_size": text_size,
        "activation": read_activation(config, "activation_function", "gelu"),
        "guidance_scale": max(1.0, generation.take("guidance_scale", float, 1.0)),
    }


def _check_start(generation: Config, config: Config, vocab_size: int) -> None:
    """The host loop starts rows, and fills a delay's gaps, with the one token that is no code."""
    for source, keys in ((generation, ("decoder_start_token_id", "pad_token_id")), (config, ("pad_token_id",))):
        for key in keys:
            token = source.take(key, int, vocab_size)
            if token < vocab_size:  # a larger one is what a config says by default, and no row of the embedding
                raise CheckpointError(
                    f"'{key}' is {token}, and the decoder's start token is the one behind its codes",
                    where=source.where,
                    allowed=str(vocab_size),
                    fix=USE_ONNX,
                )


def _refuse_end(generation: Config, vocab_size: int) -> None:
    """A piece of music is as long as was asked for; `generate` ends it at a code, where the config names one."""
    ends = generation.data.get("eos_token_id")
    if any(type(end) is int and 0 <= end < vocab_size for end in (ends if isinstance(ends, list) else [ends])):
        raise CheckpointError(
            "'eos_token_id' of the generation config is a code, and would end the music",
            where=generation.where,
            got=str(ends)[:80],
            fix="remove 'eos_token_id': the music is then as long as was asked for",
        )


def _map_decoder(config: MusicgenComponent) -> dict[str, Recipe]:
    books = range(config.num_codebooks)
    recipes = {
        "decoder.token_embedding.weight": stack(*(f"{_DECODER}.embed_tokens.{index}.weight" for index in books)),
        "decoder.head.weight": stack(*(f"decoder.lm_heads.{index}.weight" for index in books)),
        **take_module("decoder.output_norm", f"{_DECODER}.layer_norm", "weight", "bias"),
    }
    if config.has_projection:
        recipes |= take_linear("decoder.text_projection", "enc_to_dec_proj")
    for index in range(config.num_layers):
        ours, theirs = f"decoder.layers.{index}", f"{_DECODER}.layers.{index}"
        for name, other in _NORMS.items():
            recipes |= take_module(f"{ours}.{name}", f"{theirs}.{other}", "weight", "bias")
        for name, other in _LINEARS.items():
            recipes |= take_linear(f"{ours}.{name}", f"{theirs}.{other}", bias=False)
        for name, others in _STACKED.items():
            parts = tuple(f"{theirs}.{other}" for other in others)
            recipes |= stack_linear(f"{ours}.{name}", parts, bias=False)
    return recipes
