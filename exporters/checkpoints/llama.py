"""Llama 2 and later, SmolLM and whatever else says it is one; SmolLM 3, which leaves positions away in some layers."""

from __future__ import annotations

from typing import Any, ClassVar, final

from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.parts.decoder import (
    DecoderImporter,
    describe_activation,
    describe_sizes,
    describe_windows,
    take_layers,
)
from exporters.checkpoints.parts.rope import describe_rope
from specs.errors import CheckpointError


@final
class LlamaImporter(DecoderImporter):
    """`LlamaForCausalLM`."""

    title = "Llama"
    model_types = ("llama",)
    defaults: ClassVar = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    }

    def describe(self, config: Config) -> dict[str, Any]:
        refuse_partial_rotation(config)
        return {
            **describe_sizes(config),
            **describe_activation(config),
            **describe_biases(config),
            **describe_rope(config),
        }


@final
class SmolLm3Importer(DecoderImporter):
    """`SmolLM3ForCausalLM`."""

    title = "SmolLM 3"
    model_types = ("smollm3",)
    defaults: ClassVar = {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    }

    def describe(self, config: Config) -> dict[str, Any]:
        refuse_partial_rotation(config)
        layers = take_layers(config)
        interval = config.take_positive("no_rope_layer_interval", int, 4)
        rotated = config.take("no_rope_layers", list, [int((layer + 1) % interval != 0) for layer in range(layers)])
        window = config.take("sliding_window", int, 0) if config.take("use_sliding_window", bool, False) else 0
        types = ["sliding_attention" if window and not turned else "full_attention" for turned in rotated[:layers]]
        return {
            **describe_sizes(config, tied=True),
            **describe_activation(config),
            **describe_biases(config),
            **describe_rope(config, theta=2000000.0),
            **describe_windows(config, window, types),
            "nope_layers": [layer for layer, turned in enumerate(rotated[:layers]) if not turned],
        }


def describe_biases(config: Config) -> dict[str, Any]:
    """`attention_bias` is that of all four projections, `mlp_bias` that of all three."""
    attention = config.take("attention_bias", bool, False)
    return {"qkv_bias": attention, "out_bias": attention, "mlp_bias": config.take("mlp_bias", bool, False)}


def refuse_partial_rotation(config: Config) -> None:
    """CheckpointError where a config turns a share of the channels, which this family's model does not."""
    share = describe_rope(config).get("rotary_share", 1.0)
    if share != 1.0:
        raise CheckpointError(
            f"'partial_rotary_factor' is {share} in the checkpoint's config, which this family has not",
            where=config.where,
            allowed="1.0",
            fix=USE_ONNX,
        )
