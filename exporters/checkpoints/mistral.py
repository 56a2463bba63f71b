"""Mistral: Llama with a window in every layer."""

from __future__ import annotations

from typing import Any, ClassVar, final

from exporters.checkpoints.files.config import Config
from exporters.checkpoints.llama import refuse_partial_rotation
from exporters.checkpoints.parts.decoder import DecoderImporter, describe_activation, describe_sizes
from exporters.checkpoints.parts.rope import describe_rope


@final
class MistralImporter(DecoderImporter):
    """`MistralForCausalLM`."""

    title = "Mistral"
    model_types = ("mistral",)
    defaults: ClassVar = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    }

    def describe(self, config: Config) -> dict[str, Any]:
        refuse_partial_rotation(config)
        window = config.data.get("sliding_window", 4096)  # null means none, absent means 4096
        return {
            **describe_sizes(config),
            **describe_activation(config),
            **describe_rope(config),
            **({} if window is None else {"window": config.take("sliding_window", int, 4096)}),
        }
