"""Decoders of the Llama line, whatever their config calls things: tensors have the same names in all of them.

    model.embed_tokens -> model.layers.N.{input_layernorm, self_attn, post_attention_layernorm, mlp}
    -> model.norm -> lm_head

A family's own file says what its config means (`describe`); which tensors there are follows from the component.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, compute, take, take_linear
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.heads import refuse_heads
from exporters.checkpoints.tokenizers.assets import describe_tokenizer
from specs.components import MOST_LAYERS, DecoderComponent
from specs.errors import CheckpointError, WeightsError
from specs.schema import Spec

_LONGEST = 2048  # tokens that a bundle's cache holds when nobody asks for more


class DecoderImporter(Importer):
    """One family of the Llama line."""

    #: Sizes that the library's config class puts where a key is missing: inside another model's config most are.
    defaults: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def describe(self, config: Config) -> dict[str, Any]:
        """The `text.decoder` that a config means, as its YAML would say it."""

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = self.complete(folder.config)
        refuse_quantised(config)
        refuse_heads(folder, "a language model")
        require_causal(config)
        decoder = self.describe(config)
        return make_generation_spec(folder, decoder, config.take("max_position_embeddings", int, _LONGEST))

    def complete(self, config: Config) -> Config:
        """The config with the library's sizes where a key is absent; one that is null stays null."""
        return Config({**self.defaults, **config.data}, config.where)

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(DecoderComponent, spec.components["decoder"])
        prefix = folder.tensors.find_prefix("embed_tokens.weight", ("model.", ""))
        return map_decoder(config, folder.tensors, prefix=prefix, head="lm_head.weight")

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return explain_decoder(cast(DecoderComponent, spec.components["decoder"]), head="lm_head.weight")


def describe_sizes(config: Config, *, head_dim: int | None = None, tied: bool = False) -> dict[str, Any]:
    """What every config of the line says alike.

    Args:
        head_dim: where the config does not say; None for hidden_size / num_attention_heads.
        tied: `tie_word_embeddings` where the config does not say.
    """
    heads = config.take("num_attention_heads", int)
    width = config.take("head_dim", int) if "head_dim" in config else head_dim
    return {
        "kind": "text.decoder",
        "vocab_size": config.take("vocab_size", int),
        "hidden_size": config.take("hidden_size", int),
        "num_layers": config.take("num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": config.take("num_key_value_heads", int, heads),
        **({"head_dim": width} if width else {}),
        "mlp_size": config.take("intermediate_size", int),
        "rms_norm_eps": config.take("rms_norm_eps", float, 1e-6),
        "tie_embeddings": config.take("tie_word_embeddings", bool, tied),
    }


def describe_activation(config: Config, key: str = "hidden_act", default: str = "silu") -> dict[str, Any]:
    """The gate's activation."""
    return {"activation": read_activation(config, key, default)}


def describe_windows(config: Config, window: int | None, layer_types: list[str]) -> dict[str, Any]:
    """Which layers see how much.

    Args:
        layer_types: what the config's own `layer_types` are when it lists none.
    """
    types = config.take("layer_types", list, layer_types)
    layers = take_layers(config)
    unknown = next((kind for kind in types if kind not in ("full_attention", "sliding_attention")), None)
    sliding = "sliding_attention" in types
    if unknown is not None or len(types) != layers or (sliding and not window):
        raise CheckpointError(
            "the config's 'layer_types' cannot be followed",
            where=config.where,
            got=f"{len(types)} layers, window {window}" if unknown is None else f"{unknown!r}",
            allowed=f"full_attention or sliding_attention, with its 'sliding_window', for each of {layers} layers",
            fix=USE_ONNX,
        )
    if not sliding:
        return {}
    full = [layer for layer, kind in enumerate(types) if kind == "full_attention"]
    return {"window": window, **({"full_layers": full} if full else {})}


def make_generation_spec(folder: Folder, decoder: dict[str, Any], positions: int) -> dict[str, Any]:
    """The spec of a text decoder; prompt and cache as long as the model was made for, at most the family's default."""
    longest = min(positions, decoder.get("max_positions", positions), _LONGEST)
    tokens = max(1, longest // 2)
    tokenizer = describe_tokenizer(folder)
    return {
        "modality": {"inputs": ["text"], "outputs": ["text"]},
        "objective": "autoregressive",
        "components": {"decoder": decoder},
        "dims": {
            "tokens": {"min": 1, "opt": min(128, tokens), "max": tokens},
            "cache": {"min": min(16, longest), "opt": min(1024, longest), "max": longest},
        },
        **({"tokenizers": {"decoder": tokenizer}} if tokenizer else {}),
    }


def map_decoder(config: DecoderComponent, tensors: Tensors, *, prefix: str, head: str) -> dict[str, Recipe]:
    """Every parameter of a `text.decoder` called `decoder`.

    Args:
        prefix: before `embed_tokens`, `layers` and `norm`.
        head: the tensor that makes logits, where it is not the embedding.
    """
    table = f"{prefix}embed_tokens.weight"
    recipes = {
        "decoder.token_embedding.weight": take(table),
        "decoder.output_norm.weight": take(f"{prefix}norm.weight"),
    }
    for index in range(config.num_layers):
        ours, theirs = f"decoder.layers.{index}", f"{prefix}layers.{index}"
        recipes |= _map_norms(config, ours, theirs)
        recipes |= _map_attention(config, ours, theirs, fused=f"{theirs}.self_attn.qkv_proj.weight" in tensors)
        recipes |= _map_mlp(config, ours, theirs, fused=f"{theirs}.mlp.gate_up_proj.weight" in tensors)
    if config.tie_embeddings:
        check_tied(tensors, table, head)
    else:
        recipes["decoder.head.weight"] = take(head)
    return recipes


def _map_norms(config: DecoderComponent, ours: str, theirs: str) -> dict[str, Recipe]:
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.post_norms:
        names |= {
            "attention_out_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_out_norm": "post_feedforward_layernorm",
        }
    if config.qk_norm:
        names |= {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
    return {f"{ours}.{mine}.weight": take(f"{theirs}.{yours}.weight") for mine, yours in names.items()}


def _map_attention(config: DecoderComponent, ours: str, theirs: str, *, fused: bool) -> dict[str, Recipe]:
    d, heads, kv_heads = config.head_width, config.num_heads, config.kv_heads
    recipes = take_linear(f"{ours}.attention.out", f"{theirs}.self_attn.o_proj", bias=config.out_bias)
    starts = {"query": (0, heads), "key": (heads, kv_heads), "value": (heads + kv_heads, kv_heads)}
    for name, (start, count) in starts.items():
        mine = f"{ours}.attention.{name}"
        if fused:
            source = f"{theirs}.self_attn.qkv_proj.weight"
            recipes[f"{mine}.weight"] = take_rows(source, start * d, count * d)
        else:
            recipes |= take_linear(mine, f"{theirs}.self_attn.{name[0]}_proj", bias=config.qkv_bias)
    return recipes


def _map_mlp(config: DecoderComponent, ours: str, theirs: str, *, fused: bool) -> dict[str, Recipe]:
    recipes = take_linear(f"{ours}.mlp.down", f"{theirs}.mlp.down_proj", bias=config.mlp_bias)
    for index, name in enumerate(("gate", "up")):
        if fused:
            source = f"{theirs}.mlp.gate_up_proj.weight"
            recipes[f"{ours}.mlp.{name}.weight"] = take_rows(source, index * config.mlp_size, config.mlp_size)
        else:
            recipes |= take_linear(f"{ours}.mlp.{name}", f"{theirs}.mlp.{name}_proj", bias=config.mlp_bias)
    return recipes


def take_rows(name: str, start: int, count: int) -> Recipe:
    """Some rows of a matrix: one Linear of several that the checkpoint stores as one."""
    return compute(lambda tensor: tensor.narrow(0, start, count), name)


def explain_decoder(config: DecoderComponent, *, head: str) -> dict[str, str]:
    """Tensors that files of this line may hold and no parameter is made of."""
    reasons = {"*.rotary_emb.inv_freq": "computed from rope_theta"}
    return reasons | ({head: "tied to the embedding, and equal to it"} if config.tie_embeddings else {})


_FIX_HEAD = 'set "tie_word_embeddings": false in config.json if the head was trained by itself'


def check_tied(tensors: Tensors, table: str, head: str, *, fix: str = _FIX_HEAD) -> None:
    """WeightsError where a model ties `head` to its embedding, and the file holds both with different values."""
    if head not in tensors or table not in tensors:
        return
    import torch

    from specs.parameters.mapped import drop_tensor, split_tensor

    pair = tensors.read(table), tensors.read(head)
    equal = pair[0].shape == pair[1].shape and pair[0].dtype == pair[1].dtype
    for ours, theirs in zip(*map(split_tensor, pair), strict=False):
        equal = equal and torch.equal(ours, theirs)
        drop_tensor(ours)
        drop_tensor(theirs)
    if not equal:
        raise WeightsError(
            f"the config ties '{head}' to the embedding, and the file holds another one",
            where=str(tensors[head].path),
            got=f"'{head}' and '{table}' differ",
            allowed="equal tensors, or only one of them",
            fix=fix,
        )


def require_causal(config: Config, *, causal: bool = True) -> None:
    """CheckpointError where a config turns the mask of its family off, or one on: the library then follows it."""
    config.require("is_causal", (causal,), causal)


def take_layers(config: Config) -> int:
    """`num_hidden_layers`, as many as a spec takes."""
    return config.take_count("num_hidden_layers", most=MOST_LAYERS)


def refuse_quantised(config: Config) -> None:
    """CheckpointError where the weights are stored as another library's integers or scaled 8-bit floats."""
    if "quantization_config" in config:
        method = config.take_config("quantization_config").data.get("quant_method", "unknown")
        raise CheckpointError(
            "the checkpoint's weights are quantised already",
            where=config.where,
            got=f"quantization_config: {method}",
            allowed="float32, float16 or bfloat16 weights",
            fix="take the checkpoint that this one was made of; --precision int8 quantises it",
        )
