"""Qwen 2 (and 2.5): Llama with biases on query, key and value; Qwen 3: normalised queries and keys instead."""

from __future__ import annotations

from typing import Any, ClassVar, final

from exporters.checkpoints.files.config import Config
from exporters.checkpoints.llama import refuse_partial_rotation
from exporters.checkpoints.parts.decoder import (
    DecoderImporter,
    describe_activation,
    describe_sizes,
    describe_windows,
    take_layers,
)
from exporters.checkpoints.parts.rope import describe_rope

_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}


@final
class Qwen2Importer(DecoderImporter):
    """`Qwen2ForCausalLM`."""

    title = "Qwen 2"
    model_types = ("qwen2",)
    defaults: ClassVar = _DEFAULTS

    def describe(self, config: Config) -> dict[str, Any]:
        return {**describe_sizes(config), **_describe_common(config), "qkv_bias": True}


@final
class Qwen3Importer(DecoderImporter):
    """`Qwen3ForCausalLM`."""

    title = "Qwen 3"
    model_types = ("qwen3",)
    defaults: ClassVar = _DEFAULTS

    def describe(self, config: Config) -> dict[str, Any]:
        biased = config.take("attention_bias", bool, False)
        own = {"qk_norm": True, "qkv_bias": biased, "out_bias": biased}
        return {**describe_sizes(config, head_dim=128), **_describe_common(config), **own}


def _describe_common(config: Config) -> dict[str, Any]:
    """Layers from `max_window_layers` on have the window, where there is one."""
    refuse_partial_rotation(config)
    used = config.take("use_sliding_window", bool, False) and config.data.get("sliding_window", 4096) is not None
    window = config.take("sliding_window", int, 4096) if used else None
    first = config.take("max_window_layers", int, 28)
    types = [
        "sliding_attention" if window and layer >= first else "full_attention" for layer in range(take_layers(config))
    ]
    return {
        **describe_activation(config),
        **describe_rope(config),
        **describe_windows(config, window, types),
    }
