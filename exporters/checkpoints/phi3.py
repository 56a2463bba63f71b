"""Phi 3 and 3.5: Llama with query, key and value in one matrix, gate and up in another; Phi 4 mini turns some channels.

Long texts: the first set of LongRoPE factors holds up to `original_max_position_embeddings`, which ends the cache.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

from exporters.checkpoints.files.config import Config
from exporters.checkpoints.parts.decoder import DecoderImporter, describe_activation, describe_sizes
from exporters.checkpoints.parts.rope import describe_rope


@final
class Phi3Importer(DecoderImporter):
    """`Phi3ForCausalLM`."""

    title = "Phi 3"
    model_types = ("phi3",)
    defaults: ClassVar = {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    }

    def describe(self, config: Config) -> dict[str, Any]:
        window = config.take("sliding_window", int, 0)
        config = Config({"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **config.data}, config.where)
        return {
            **describe_sizes(config),
            **describe_activation(config),
            **describe_rope(config, rename={"su": "longrope", "yarn": "longrope"}),
            **({"window": window} if window else {}),
        }
