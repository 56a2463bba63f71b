"""GPT-NeoX and Pythia: query, key and value lie head by head in one matrix.

gpt_neox.embed_in -> gpt_neox.layers.N.{input_layernorm, attention, post_attention_layernorm, mlp}
-> gpt_neox.final_layer_norm -> embed_out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, compute, take, take_linear, take_module
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import check_tied, make_generation_spec, refuse_quantised, require_causal
from exporters.checkpoints.parts.heads import refuse_heads
from exporters.checkpoints.parts.rope import describe_rope, read_rope
from specs.components import NeoxComponent
from specs.schema import Spec

if TYPE_CHECKING:
    from torch import Tensor


@final
class NeoxImporter(Importer):
    """`GPTNeoXForCausalLM`."""

    title = "GPT-NeoX"
    model_types = ("gpt_neox",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        refuse_quantised(config)
        refuse_heads(folder, "a language model")
        require_causal(config)
        size, heads = config.take_count("hidden_size", 6144), config.take_count("num_attention_heads", 64)
        config.require("head_dim", (size // heads,), size // heads)  # the library would turn as many channels, no more
        decoder = {
            "kind": "text.neox",
            "vocab_size": config.take("vocab_size", int, 50432),
            "hidden_size": size,
            "num_layers": config.take("num_hidden_layers", int, 44),
            "num_heads": heads,
            "mlp_size": config.take("intermediate_size", int, 24576),
            "activation": read_activation(config, "hidden_act", "gelu"),
            "layer_norm_eps": config.take("layer_norm_eps", float, 1e-5),
            "attention_bias": config.take("attention_bias", bool, True),
            "parallel": config.take("use_parallel_residual", bool, True),
            "tie_embeddings": config.take("tie_word_embeddings", bool, False),
            "rotary_share": 1.0,
            **_describe_rotation(config),
        }
        return make_generation_spec(folder, decoder, config.take("max_position_embeddings", int, 2048))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(NeoxComponent, spec.components["decoder"])
        prefix = folder.tensors.find_prefix("embed_in.weight", ("gpt_neox.", ""))
        recipes = {
            "decoder.token_embedding.weight": take(f"{prefix}embed_in.weight"),
            **take_module("decoder.output_norm", f"{prefix}final_layer_norm", "weight", "bias"),
        }
        for index in range(config.num_layers):
            ours, theirs = f"decoder.layers.{index}", f"{prefix}layers.{index}"
            recipes |= take_module(f"{ours}.attention_norm", f"{theirs}.input_layernorm", "weight", "bias")
            recipes |= take_module(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm", "weight", "bias")
            recipes |= take_linear(f"{ours}.mlp.up", f"{theirs}.mlp.dense_h_to_4h")
            recipes |= take_linear(f"{ours}.mlp.down", f"{theirs}.mlp.dense_4h_to_h")
            recipes |= take_linear(f"{ours}.attention.out", f"{theirs}.attention.dense", bias=config.attention_bias)
            for leaf in ("weight", "bias") if config.attention_bias else ("weight",):
                source = f"{theirs}.attention.query_key_value.{leaf}"
                recipes[f"{ours}.attention.qkv.{leaf}"] = take_heads_apart(source, config.num_heads)
        if config.tie_embeddings:
            check_tied(folder.tensors, f"{prefix}embed_in.weight", "embed_out.weight")
        else:
            recipes["decoder.head.weight"] = take("embed_out.weight")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        tied = cast(NeoxComponent, spec.components["decoder"]).tie_embeddings
        reasons = {
            "*rotary_emb.inv_freq": "computed from rope_theta",
            "*attention.bias": "the causal mask, a constant",
            "*attention.masked_bias": "a constant",
        }
        return reasons | ({"embed_out.weight": "tied to the embedding, and equal to it"} if tied else {})


def _describe_rotation(config: Config) -> dict[str, Any]:
    """`rotary_pct` and `rotary_emb_base` are the old names of what `rope_parameters` holds."""
    rope = read_rope(config)
    old = {
        "rope_theta": config.take("rotary_emb_base", float, 10000.0),
        "partial_rotary_factor": config.take("rotary_pct", float, 0.25),
    }
    return describe_rope(config, Config({**old, **rope.data}, rope.where))


def take_heads_apart(name: str, heads: int) -> Recipe:
    """Rows [heads, (q, k, v), width] -> [(q, k, v), heads, width]."""

    def make(tensor: Tensor) -> Tensor:
        return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).flatten(0, 2)

    return compute(make, name)
