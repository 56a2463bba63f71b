"""GPT-2: Linears are stored the other way round (Conv1D), and the first files have no `transformer.` before names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.recipes import Recipe, take, take_module, transpose
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import check_tied, make_generation_spec, refuse_quantised, require_causal
from exporters.checkpoints.parts.heads import refuse_heads
from specs.components import Gpt2Component
from specs.schema import Spec

_LINEARS = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


@final
class Gpt2Importer(Importer):
    """`GPT2LMHeadModel`."""

    title = "GPT-2"
    model_types = ("gpt2",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        refuse_quantised(config)
        refuse_heads(folder, "a language model")
        require_causal(config)
        config.require("add_cross_attention", (False,), False)
        positions = config.take("n_positions", int, 1024)
        width = config.take("n_embd", int, 768)
        decoder = {
            "kind": "text.gpt2",
            "vocab_size": config.take("vocab_size", int, 50257),
            "hidden_size": width,
            "num_layers": config.take("n_layer", int, 12),
            "num_heads": config.take("n_head", int, 12),
            "mlp_size": config.take("n_inner", int, 4 * width),
            "max_positions": positions,
            "activation": read_activation(config, "activation_function", "gelu_new"),
            "layer_norm_eps": config.take("layer_norm_epsilon", float, 1e-5),
            "scale_attention": config.take("scale_attn_weights", bool, True),
            "scale_by_layer": config.take("scale_attn_by_inverse_layer_idx", bool, False),
            "tie_embeddings": config.take("tie_word_embeddings", bool, True),
        }
        return make_generation_spec(folder, decoder, positions)

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(Gpt2Component, spec.components["decoder"])
        prefix = folder.tensors.find_prefix("wte.weight", ("transformer.", ""))
        recipes = {
            "decoder.token_embedding.weight": take(f"{prefix}wte.weight"),
            "decoder.position_embedding.weight": take(f"{prefix}wpe.weight"),
            **take_module("decoder.output_norm", f"{prefix}ln_f", "weight", "bias"),
        }
        for index in range(config.num_layers):
            ours, theirs = f"decoder.layers.{index}", f"{prefix}h.{index}"
            recipes |= take_module(f"{ours}.attention_norm", f"{theirs}.ln_1", "weight", "bias")
            recipes |= take_module(f"{ours}.mlp_norm", f"{theirs}.ln_2", "weight", "bias")
            for mine, yours in _LINEARS.items():
                recipes[f"{ours}.{mine}.weight"] = transpose(f"{theirs}.{yours}.weight")
                recipes[f"{ours}.{mine}.bias"] = take(f"{theirs}.{yours}.bias")
        if config.tie_embeddings:
            check_tied(folder.tensors, f"{prefix}wte.weight", "lm_head.weight")
        else:
            recipes["decoder.head.weight"] = take("lm_head.weight")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        tied = cast(Gpt2Component, spec.components["decoder"]).tie_embeddings
        reasons = {"*.attn.bias": "the causal mask, a constant", "*.attn.masked_bias": "a constant"}
        reasons |= {"h.*.attn.bias": "the causal mask, a constant"}
        return reasons | ({"lm_head.weight": "tied to the embedding, and equal to it"} if tied else {})
