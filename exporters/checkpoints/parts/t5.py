"""T5's encoder, alone or inside another model (MusicGen, SD3, PixArt).

shared, encoder.block.N.layer.{0 SelfAttention, layer_norm; 1 DenseReluDense, layer_norm} -> encoder.final_layer_norm
"""

from __future__ import annotations

from typing import Any

from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, take, take_linear
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import check_tied
from specs.components.text.t5 import T5Component

_LINEARS = {
    "attention.query": "layer.0.SelfAttention.q",
    "attention.key": "layer.0.SelfAttention.k",
    "attention.value": "layer.0.SelfAttention.v",
    "attention.out": "layer.0.SelfAttention.o",
    "mlp.down": "layer.1.DenseReluDense.wo",
}
#: What the library's config classes put where a key is missing: T5's, and those of mT5 and umT5.
_SIZES = {"vocab_size": 32128, "num_layers": 6, "num_heads": 8, "d_ff": 2048}
_LATER_SIZES = {"vocab_size": 250112, "num_layers": 8, "num_heads": 6, "d_ff": 1024}


def make_t5(config: Config) -> dict[str, Any]:
    """The component that a T5 config describes.

    Raises:
        CheckpointError: an option that is not implemented.
    """
    config.require("is_decoder", (False,), False)
    family = config.take("model_type", str, "t5")
    usual = _SIZES if family == "t5" else _LATER_SIZES
    activation, gated = _read_mlp(config, "relu" if family == "t5" else "gated-gelu")
    return {
        "kind": "text.t5",
        "vocab_size": config.take("vocab_size", int, usual["vocab_size"]),
        "hidden_size": config.take("d_model", int, 512),
        "num_layers": config.take("num_layers", int, usual["num_layers"]),
        "num_heads": config.take("num_heads", int, usual["num_heads"]),
        "head_dim": config.take("d_kv", int, 64),
        "mlp_size": config.take("d_ff", int, usual["d_ff"]),
        "activation": activation,
        "gated": gated,
        "num_buckets": config.take("relative_attention_num_buckets", int, 32),
        "max_distance": config.take("relative_attention_max_distance", int, 128),
        "layer_norm_eps": config.take("layer_norm_epsilon", float, 1e-6),
        "own_bias": family == "umt5",
    }


def _read_mlp(config: Config, usual: str) -> tuple[str, bool]:
    """`feed_forward_proj`: an activation, or `gated-` and one; `gated-gelu` has always meant the tanh form.

    `dense_act_fn` and `is_gated_act` say the same once more in newer files, and in the library it is they that count.
    """
    spelled = config.take("feed_forward_proj", str, usual)
    name = "gelu_new" if spelled == "gated-gelu" else spelled.removeprefix("gated-")
    key = "dense_act_fn" if "dense_act_fn" in config else "feed_forward_proj"
    said = Config({"feed_forward_proj": name, "dense_act_fn": config.data.get("dense_act_fn")}, config.where)
    activation = read_activation(said, key, "relu")
    return activation, config.take("is_gated_act", bool, spelled.startswith("gated-"))


def map_t5(config: T5Component, tensors: Tensors, *, ours: str, theirs: str) -> dict[str, Recipe]:
    """Recipes of the encoder's parameters; `theirs` stands before `shared` and `encoder.`."""
    stored, inner = f"{theirs}shared.weight", f"{theirs}encoder.embed_tokens.weight"
    check_tied(tensors, stored, inner, fix="remove the one that the model was not trained with")
    recipes = {
        f"{ours}.token_embedding.weight": take(stored if stored in tensors else inner),
        f"{ours}.distance_embedding.weight": take(
            f"{theirs}encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ),
        f"{ours}.output_norm.weight": take(f"{theirs}encoder.final_layer_norm.weight"),
    }
    if config.own_bias:
        recipes |= {
            f"{ours}.distance_embeddings.{index - 1}.weight": take(
                f"{theirs}encoder.block.{index}.layer.0.SelfAttention.relative_attention_bias.weight"
            )
            for index in range(1, config.num_layers)
        }
    linears = _LINEARS | (
        {"mlp.gate": "layer.1.DenseReluDense.wi_0", "mlp.up": "layer.1.DenseReluDense.wi_1"}
        if config.gated
        else {"mlp.up": "layer.1.DenseReluDense.wi"}
    )
    for index in range(config.num_layers):
        mine, yours = f"{ours}.layers.{index}", f"{theirs}encoder.block.{index}"
        recipes[f"{mine}.attention_norm.weight"] = take(f"{yours}.layer.0.layer_norm.weight")
        recipes[f"{mine}.mlp_norm.weight"] = take(f"{yours}.layer.1.layer_norm.weight")
        for name, other in linears.items():
            recipes |= take_linear(f"{mine}.{name}", f"{yours}.{other}", bias=False)
    return recipes


def explain_t5(theirs: str) -> dict[str, str]:
    """Tensors of a T5 that its encoder does not use."""
    return {f"{theirs}encoder.embed_tokens.weight": "tied to shared, and equal to it"}
