"""Llama 2 and later: RMSNorm, rotary positions in rotate-half order, grouped queries, SwiGLU.

model.embed_tokens -> model.layers.N.{input_layernorm, self_attn, post_attention_layernorm, mlp}
-> model.norm -> lm_head
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.assets import describe_tokenizer
from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.config import Config
from exporters.checkpoints.recipes import Recipe, take, take_linear
from specs.components import DecoderComponent
from specs.schema import Spec

_LINEARS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


@final
class LlamaImporter(Importer):
    """`LlamaForCausalLM`."""

    title = "Llama"
    model_types = ("llama",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        config.require("hidden_act", ("silu",), "silu")
        config.require("attention_bias", (False,), False)
        config.require("mlp_bias", (False,), False)
        heads = config.take("num_attention_heads", int)
        decoder: dict[str, Any] = {
            "kind": "text.decoder",
            "vocab_size": config.take("vocab_size", int),
            "hidden_size": config.take("hidden_size", int),
            "num_layers": config.take("num_hidden_layers", int),
            "num_heads": heads,
            "num_kv_heads": config.take("num_key_value_heads", int, heads),
            "mlp_size": config.take("intermediate_size", int),
            "rope_theta": read_rope_theta(config),
            "rms_norm_eps": config.take("rms_norm_eps", float, 1e-6),
            "tie_embeddings": config.take("tie_word_embeddings", bool, False),
        }
        if "head_dim" in config:
            decoder["head_dim"] = config.take("head_dim", int)
        tokenizer = describe_tokenizer(folder)
        return {
            "modality": {"inputs": ["text"], "outputs": ["text"]},
            "objective": "autoregressive",
            "components": {"decoder": decoder},
            "dims": make_dims(config.take("max_position_embeddings", int, 2048)),
            **({"tokenizers": {"decoder": tokenizer}} if tokenizer else {}),
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(DecoderComponent, spec.components["decoder"])
        prefix = folder.tensors.find_prefix("embed_tokens.weight", ("model.", ""))
        recipes = {
            "decoder.token_embedding.weight": take(f"{prefix}embed_tokens.weight"),
            "decoder.output_norm.weight": take(f"{prefix}norm.weight"),
        }
        for index in range(config.num_layers):
            ours, theirs = f"decoder.layers.{index}", f"{prefix}layers.{index}"
            recipes[f"{ours}.attention_norm.weight"] = take(f"{theirs}.input_layernorm.weight")
            recipes[f"{ours}.mlp_norm.weight"] = take(f"{theirs}.post_attention_layernorm.weight")
            for mine, yours in _LINEARS.items():
                recipes |= take_linear(f"{ours}.{mine}", f"{theirs}.{yours}", bias=False)
        if not config.tie_embeddings:
            recipes["decoder.head.weight"] = take("lm_head.weight")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        tied = cast(DecoderComponent, spec.components["decoder"]).tie_embeddings
        reasons = {"*.rotary_emb.inv_freq": "computed from rope_theta"}
        return reasons | ({"lm_head.weight": "tied to the embedding"} if tied else {})


def read_rope_theta(config: Config) -> float:
    """transformers 5 keeps it in `rope_parameters`, earlier ones beside the sizes."""
    parameters = config.take_config("rope_parameters" if "rope_parameters" in config else "rope_scaling")
    parameters.require("rope_type" if "rope_type" in parameters else "type", ("default",), "default")
    return parameters.take("rope_theta", float, config.take("rope_theta", float, 10000.0))


def make_dims(positions: int) -> dict[str, dict[str, int]]:
    """Prompt and cache as long as the model was made for, at most the defaults of the family."""
    longest = min(positions, 2048)
    tokens = max(1, longest // 2)
    return {
        "tokens": {"min": 1, "opt": min(128, tokens), "max": tokens},
        "cache": {"min": min(16, longest), "opt": min(1024, longest), "max": longest},
    }
