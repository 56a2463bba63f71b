"""wav2vec 2.0 with a CTC head, and HuBERT, whose checkpoints differ in a name and an option.

    wav2vec2.feature_extractor.conv_layers.N.{conv, layer_norm} -> feature_projection.{layer_norm, projection}
    -> encoder.{pos_conv_embed.conv, layer_norm, layers.N} -> lm_head

The position convolution is stored as a direction and a length of each of its columns (weight normalisation, Salimans
and Kingma 2016), under two spellings; here it becomes the weight that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from pydantic import ValidationError

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, stack_linear, take_linear
from exporters.checkpoints.files.weight_norm import take_normed
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import require_causal
from exporters.checkpoints.parts.sound import describe_speech, find_feature_extractor
from exporters.checkpoints.tokenizers.vocabulary import read_vocabulary
from specs.components import Wav2Vec2Component
from specs.schema import Spec

#: The longest sound of one run, 30 seconds in published models: the scores of attention grow with its square.
_MOST_FRAMES, _USUAL_FRAMES = 1499, 499


@final
class Wav2Vec2Importer(Importer):
    """`Wav2Vec2ForCTC` and `HubertForCTC`."""

    title = "wav2vec 2.0 and HuBERT"
    model_types = ("wav2vec2", "hubert")

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config, sound = folder.config, find_feature_extractor(folder)
        config.require("add_adapter", (False,), False)
        config.require("conv_pos_batch_norm", (False,), False)
        sound.require("feature_size", (1,), 1)
        sound.require("padding_value", (0,), 0)
        require_causal(config, causal=False)
        vocab_size = config.take_count("vocab_size", 32)
        vocabulary = read_vocabulary(folder, vocab_size=vocab_size)
        feature_norm = config.require("feat_extract_norm", ("group", "layer"), "group")
        rate = sound.take("sampling_rate", int, 16000)
        encoder = {
            "kind": "audio.wav2vec2",
            "vocab_size": vocab_size,
            **_take_sizes(config),
            "sample_rate": rate,
            "feature_norm": feature_norm,
            "feature_bias": config.take("conv_bias", bool, False),
            "feature_activation": read_activation(config, "feat_extract_activation", "gelu"),
            "projection_norm": config.take("feat_proj_layer_norm", bool, True),
            "activation": read_activation(config, "hidden_act", "gelu"),
            "norm_first": config.take("do_stable_layer_norm", bool, False),
            "normalize": sound.take("do_normalize", bool, True),
            # the base models were trained without a mask, and their processors make none unless told to
            "mask_padding": feature_norm == "layer" or sound.take("return_attention_mask", bool, False),
            **vocabulary.options,
        }
        return {
            **describe_speech("ctc"),
            "components": {"encoder": encoder},
            "dims": _make_dims(encoder),
            **({"labels": list(vocabulary.labels)} if vocabulary.labels else {}),
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(Wav2Vec2Component, spec.components["encoder"])
        probe = "feature_extractor.conv_layers.0.conv.weight"
        prefix = folder.tensors.find_prefix(probe, ("wav2vec2.", "hubert.", ""))
        recipes = take_linear("encoder.head", "lm_head")
        for index in range(len(config.conv_sizes)):
            ours, theirs = f"encoder.features.{index}", f"{prefix}feature_extractor.conv_layers.{index}"
            recipes |= take_linear(f"{ours}.conv", f"{theirs}.conv", bias=config.feature_bias)
            if config.feature_norm == "layer" or index == 0:
                recipes |= take_linear(f"{ours}.{config.feature_norm}_norm", f"{theirs}.layer_norm")
        if config.projection_norm:
            recipes |= take_linear("encoder.projection_norm", f"{prefix}feature_projection.layer_norm")
        recipes |= take_linear("encoder.projection", f"{prefix}feature_projection.projection")
        positions = f"{prefix}encoder.pos_conv_embed.conv"
        recipes |= take_normed("encoder.positions.conv", positions, folder.tensors)
        recipes |= take_linear("encoder.norm", f"{prefix}encoder.layer_norm")
        for index in range(config.num_layers):
            recipes |= _map_layer(f"encoder.layers.{index}", f"{prefix}encoder.layers.{index}", config)
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        training = "used in training only"
        return {
            "*masked_spec_embed": training,
            "quantizer.*": training,
            "project_q.*": training,
            "project_hid.*": training,
        }


def _take_sizes(config: Config) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "hidden_size": config.take("hidden_size", int, 768),
        "num_layers": config.take("num_hidden_layers", int, 12),
        "num_heads": config.take("num_attention_heads", int, 12),
        "mlp_size": config.take("intermediate_size", int, 3072),
        "layer_norm_eps": config.take("layer_norm_eps", float, 1e-5),
        "conv_sizes": tuple(config.take("conv_dim", list, [512] * 7)),
        "conv_kernels": tuple(config.take("conv_kernel", list, [10, 3, 3, 3, 3, 2, 2])),
        "conv_strides": tuple(config.take("conv_stride", list, [5, 2, 2, 2, 2, 2, 2])),
        "position_kernel": config.take("num_conv_pos_embeddings", int, 128),
        "position_groups": config.take("num_conv_pos_embedding_groups", int, 16),
    }
    adapter = config.take("adapter_attn_dim", int, 0)
    return sizes | {"adapter_size": adapter} if adapter else sizes


def _make_dims(encoder: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    try:
        config = Wav2Vec2Component.model_validate(encoder)
    except ValidationError:
        return {}  # the spec's own check words it
    shortest = config.smallest_input + config.total_stride
    usual, longest = ((frames + 1) * config.total_stride for frames in (_USUAL_FRAMES, _MOST_FRAMES))
    return {"samples": {"min": shortest, "opt": max(shortest, usual), "max": max(shortest, longest)}}


def _map_layer(ours: str, theirs: str, config: Wav2Vec2Component) -> dict[str, Recipe]:
    parts = tuple(f"{theirs}.attention.{part}_proj" for part in "qkv")
    recipes = stack_linear(f"{ours}.attention.qkv", parts)
    recipes |= take_linear(f"{ours}.attention.out", f"{theirs}.attention.out_proj")
    recipes |= take_linear(f"{ours}.attention_norm", f"{theirs}.layer_norm")
    recipes |= take_linear(f"{ours}.mlp.up", f"{theirs}.feed_forward.intermediate_dense")
    recipes |= take_linear(f"{ours}.mlp.down", f"{theirs}.feed_forward.output_dense")
    recipes |= take_linear(f"{ours}.mlp_norm", f"{theirs}.final_layer_norm")
    if config.adapter_size:
        for name, leaf in (("norm", "norm"), ("down", "linear_1"), ("up", "linear_2")):
            recipes |= take_linear(f"{ours}.adapter.{name}", f"{theirs}.adapter_layer.{leaf}")
    return recipes
