"""BERT (Devlin et al. 2018) and its kin: RoBERTa, XLM-R, DistilBERT, MPNet; with what sentence-transformers adds.

embeddings.{word, position, token_type}_embeddings, LayerNorm -> encoder.layer.N -> [pooler.dense]

The embedding is what modules.json says; without one the model's own pooler; without one of that the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, compute, stack_linear, take, take_linear, take_module
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.heads import refuse_heads
from exporters.checkpoints.parts.sentence import join_dense, map_dense, read_sentence_modules
from exporters.checkpoints.parts.towers import has_tensor
from exporters.checkpoints.tokenizers.bert import describe_bert_tokenizer
from specs.components import BertComponent
from specs.schema import Spec


@final
@dataclass(frozen=True, kw_only=True)
class Names:
    """What one of the libraries' models calls the parts of a layer, and of its config."""

    prefixes: tuple[str, ...]
    layer: str = "encoder.layer"
    qkv: tuple[str, str, str] = ("attention.self.query", "attention.self.key", "attention.self.value")
    out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    mlp_norm: str = "output.LayerNorm"
    keys: tuple[str, ...] = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
    )


_DISTIL = Names(
    prefixes=("distilbert.", ""),
    layer="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    mlp_norm="output_layer_norm",
    keys=("dim", "n_layers", "n_heads", "hidden_dim", "activation"),
)
_MPNET = Names(
    prefixes=("mpnet.", ""),
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
_NAMES = {
    "bert": Names(prefixes=("bert.", "")),
    "roberta": Names(prefixes=("roberta.", "")),
    "camembert": Names(prefixes=("roberta.", "")),
    "xlm-roberta": Names(prefixes=("roberta.", "")),
    "distilbert": _DISTIL,
    "mpnet": _MPNET,
}
_ROBERTAS = ("roberta", "camembert", "xlm-roberta", "mpnet")  # positions begin behind that of padding
_VOCABULARIES = {"roberta": 50265, "camembert": 30522, "xlm-roberta": 30522, "mpnet": 30527}
_WITHOUT_SEGMENTS = ("distilbert", "mpnet")


@final
class BertImporter(Importer):
    """`BertModel`, `RobertaModel`, `XLMRobertaModel`, `CamembertModel`, `DistilBertModel`, `MPNetModel`."""

    title = "BERT, RoBERTa, DistilBERT, MPNet"
    model_types = tuple(_NAMES)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config, modules = folder.config, read_sentence_modules(folder)
        family = config.take("model_type", str)
        _refuse_options(folder, family)
        encoder = _read_encoder(config, family)
        width = encoder["hidden_size"]
        options = dict(modules.options)
        if not options and has_tensor(folder, ("BertModel", "RobertaModel", "MPNetModel"), *_name_pooler(family)):
            options = {"pooling": "class", "pooler_size": width, "pooler_activation": "tanh"}
        encoder |= options
        longest = min(modules.max_tokens or encoder["context_length"], encoder["context_length"])
        tokenizer = describe_bert_tokenizer(folder)
        return {
            "modality": {"inputs": ["text"], "outputs": ["embedding"]},
            "objective": "contrastive",
            "components": {"encoder": encoder},
            "dims": {"tokens": {"min": 1, "opt": min(32, longest), "max": longest}},
            **({"tokenizers": {"encoder": tokenizer}} if tokenizer else {}),
        }

    def open_tensors(self, folder: Folder) -> Tensors:
        return join_dense(folder, read_sentence_modules(folder))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(BertComponent, spec.components["encoder"])
        family = folder.config.take("model_type", str)
        names = _NAMES[family]
        prefix = folder.tensors.find_prefix("embeddings.word_embeddings.weight", names.prefixes)
        skipped = _count_skipped_positions(folder.config, family)
        table = f"{prefix}embeddings.position_embeddings.weight"
        recipes = {
            "encoder.token_embedding.weight": take(f"{prefix}embeddings.word_embeddings.weight"),
            "encoder.position_embedding": compute(lambda rows: rows[skipped:], table) if skipped else take(table),
            **_take_norm("encoder.input_norm", f"{prefix}embeddings.LayerNorm", folder.tensors),
        }
        if config.token_type:
            first = f"{prefix}embeddings.token_type_embeddings.weight"
            recipes["encoder.segment_embedding"] = compute(lambda rows: rows[0], first)
        if config.relative_buckets:
            bias = f"{prefix}encoder.relative_attention_bias.weight"
            recipes["encoder.distance_bias.embedding.weight"] = take(bias)
        for index in range(config.num_layers):
            recipes |= _map_layer(f"encoder.layers.{index}", f"{prefix}{names.layer}.{index}", names, folder.tensors)
        if config.pooler_size:
            recipes |= take_linear("encoder.embedding_head.pooler", f"{prefix}pooler.dense")
        return recipes | map_dense("encoder", read_sentence_modules(folder))

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return {
            "*embeddings.position_ids": "counted, not stored: 0, 1, 2 and so on",
            "*embeddings.token_type_ids": "all 0: a text is one segment",
            "*pooler.dense.*": "the embedding is pooled another way, as modules.json says",
            "cls.*": "the head that guesses masked words",
            "lm_head.*": "the head that guesses masked words",
            "vocab_*": "the head that guesses masked words",
        }


def _read_encoder(config: Config, family: str) -> dict[str, Any]:
    width, layers, heads, mlp, activation = _NAMES[family].keys
    positions = config.take("max_position_embeddings", int, 512)
    encoder: dict[str, Any] = {
        "kind": "text.bert",
        "vocab_size": config.take("vocab_size", int, _VOCABULARIES.get(family, 30522)),
        "context_length": positions - _count_skipped_positions(config, family),
        "hidden_size": config.take(width, int, 768),
        "num_layers": config.take(layers, int, 6 if family == "distilbert" else 12),
        "num_heads": config.take(heads, int, 12),
        "mlp_size": config.take(mlp, int, 3072),
        "activation": read_activation(config, activation, "gelu"),
        "layer_norm_eps": 1e-12 if family == "distilbert" else config.take("layer_norm_eps", float, 1e-12),
        "token_type": family not in _WITHOUT_SEGMENTS,
    }
    if family == "mpnet":
        config.require("pad_token_id", (1,), 1)  # the library's positions begin behind id 1, whatever this says
        encoder["relative_buckets"] = config.require("relative_attention_num_buckets", (32,), 32)
    return encoder


def _refuse_options(folder: Folder, family: str) -> None:
    config = folder.config
    config.require("position_embedding_type", ("absolute",), "absolute")
    config.require("is_decoder", (False,), False)
    config.require("add_cross_attention", (False,), False)
    refuse_heads(folder, "the encoder alone, or a sentence-transformers model")


def _count_skipped_positions(config: Config, family: str) -> int:
    """Rows of the position table before a text's first token: RoBERTa counts from behind its padding id."""
    if family not in _ROBERTAS:
        return 0
    return 2 if family == "mpnet" else config.take("pad_token_id", int, 1) + 1


def _name_pooler(family: str) -> tuple[str, ...]:
    return tuple(f"{prefix}pooler.dense.weight" for prefix in _NAMES[family].prefixes)


def _take_norm(ours: str, theirs: str, tensors: Tensors) -> dict[str, Recipe]:
    """LayerNorm; files converted from TensorFlow call its parameters gamma and beta."""
    if f"{theirs}.gamma" in tensors:
        return {f"{ours}.weight": take(f"{theirs}.gamma"), f"{ours}.bias": take(f"{theirs}.beta")}
    return take_module(ours, theirs, "weight", "bias")


def _map_layer(ours: str, theirs: str, names: Names, tensors: Tensors) -> dict[str, Recipe]:
    return {
        **stack_linear(f"{ours}.attention.qkv", tuple(f"{theirs}.{part}" for part in names.qkv)),
        **take_linear(f"{ours}.attention.out", f"{theirs}.{names.out}"),
        **_take_norm(f"{ours}.attention_norm", f"{theirs}.{names.attention_norm}", tensors),
        **take_linear(f"{ours}.mlp.up", f"{theirs}.{names.up}"),
        **take_linear(f"{ours}.mlp.down", f"{theirs}.{names.down}"),
        **_take_norm(f"{ours}.mlp_norm", f"{theirs}.{names.mlp_norm}", tensors),
    }
