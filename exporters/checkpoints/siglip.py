"""SigLIP (Zhai et al. 2023): the whole model, either tower alone, and as a classifier.

vision_model.{embeddings, encoder.layers.N, post_layernorm, head.{probe, attention, layernorm, mlp}}
text_model.{embeddings, encoder.layers.N, final_layer_norm, head};  logit_scale, logit_bias;  classifier
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, compute, reshape, take_linear, take_module
from exporters.checkpoints.parts.pictures import SIGLIP, read_pictures
from exporters.checkpoints.parts.towers import (
    IDS,
    get_image,
    has_tensor,
    make_classifier_spec,
    make_image_spec,
    make_pair_spec,
    make_text_spec,
    map_text,
    map_vision,
    read_grid,
    read_labels,
    read_sizes,
    take_scalar,
)
from exporters.checkpoints.tokenizers.assets import describe_tokenizer
from specs.components import ClipTextComponent, VisionTransformerComponent
from specs.schema import Spec

_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_ACTIVATION = "gelu_pytorch_tanh"


def read_vision(config: Config, folder: Folder) -> dict[str, Any]:
    """SigLIP's `vision_config` as a component."""
    grid = read_grid(config, patch=16)
    return {
        "kind": "vision.siglip",
        **grid,
        **read_sizes(config, activation=_ACTIVATION, eps=1e-6, sizes=_SIZES),
        **read_pictures(folder, get_image(grid), grid["num_channels"], SIGLIP),
        **({} if config.take("vision_use_head", bool, True) else {"pooling": "none"}),
    }


def read_text(config: Config) -> dict[str, Any]:
    """SigLIP's `text_config` as a component."""
    sizes = read_sizes(config, activation=_ACTIVATION, eps=1e-6, sizes=_SIZES)
    return {
        "kind": "text.siglip",
        "vocab_size": config.take("vocab_size", int, 32000),
        "context_length": config.take("max_position_embeddings", int, 64),
        **sizes,
        "projection_size": config.take("projection_size", int, sizes["hidden_size"]),
    }


def read_tokenizer(folder: Folder) -> dict[str, Any] | None:
    """The `tokenizers` entry: texts are filled up behind their end, and what is pooled is the last token.

    Raises:
        CheckpointError: a tokenizer that fills texts up in front.
    """
    folder.find_config("tokenizer_config.json").require("padding_side", ("right",), "right")
    return describe_tokenizer(folder)


def map_siglip_vision(ours: str, theirs: str, config: VisionTransformerComponent) -> dict[str, Recipe]:
    """The tower, and its head where it pools by attention."""
    recipes = map_vision(ours, theirs, config)
    if config.resolved_pooling != "attention":
        return recipes
    width, mine, yours = config.hidden_size, f"{ours}.attention_pool", f"{theirs}head"
    recipes[f"{mine}.query_token"] = reshape(f"{yours}.probe", width)
    for leaf in ("weight", "bias"):
        fused = f"{yours}.attention.in_proj_{leaf}"
        recipes[f"{mine}.query.{leaf}"] = compute(lambda tensor: tensor[:width], fused)
        recipes[f"{mine}.key_value.{leaf}"] = compute(lambda tensor: tensor[width:], fused)
    recipes |= take_linear(f"{mine}.out", f"{yours}.attention.out_proj")
    recipes |= take_module(f"{mine}.mlp_norm", f"{yours}.layernorm", "weight", "bias")
    recipes |= take_linear(f"{mine}.mlp.up", f"{yours}.mlp.fc1")
    recipes |= take_linear(f"{mine}.mlp.down", f"{yours}.mlp.fc2")
    return recipes


@final
class SiglipImporter(Importer):
    """`SiglipModel`, `SiglipForImageClassification`."""

    title = "SigLIP"
    model_types = ("siglip",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        vision = read_vision(config.take_config("vision_config"), folder)
        if has_tensor(folder, ("SiglipForImageClassification",), "classifier.weight"):
            return make_classifier_spec(vision, read_labels(config))
        text = read_text(config.take_config("text_config"))
        return make_pair_spec(vision, text, {"kind": "fusion.sigmoid"}, read_tokenizer(folder))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        if "classifier" in spec.components:
            classifier = cast(VisionTransformerComponent, spec.components["classifier"])
            recipes = map_siglip_vision("classifier", "vision_model.", classifier)
            return recipes | take_linear("classifier.head", "classifier")
        return {
            **map_siglip_vision(
                "image_encoder", "vision_model.", cast(VisionTransformerComponent, spec.components["image_encoder"])
            ),
            **map_text("text_encoder", "text_model.", cast(ClipTextComponent, spec.components["text_encoder"])),
            **take_linear("text_encoder.projection", "text_model.head"),
            "fusion.logit_scale": take_scalar("logit_scale"),
            "fusion.logit_bias": take_scalar("logit_bias"),
        }

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        head = {"vision_model.head.*": "the classifier averages tokens instead of pooling by attention"}
        return IDS | (head if "classifier" in spec.components else {})


@final
class SiglipVisionImporter(Importer):
    """`SiglipVisionModel`."""

    title = "SigLIP image tower"
    model_types = ("siglip_vision_model",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        return make_image_spec(read_vision(folder.config, folder))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        prefix = folder.tensors.find_prefix("embeddings.patch_embedding.weight", ("vision_model.", ""))
        return map_siglip_vision("encoder", prefix, cast(VisionTransformerComponent, spec.components["encoder"]))

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return IDS


@final
class SiglipTextImporter(Importer):
    """`SiglipTextModel`."""

    title = "SigLIP text tower"
    model_types = ("siglip_text_model",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        return make_text_spec(read_text(folder.config), read_tokenizer(folder))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(ClipTextComponent, spec.components["encoder"])
        prefix = folder.tensors.find_prefix("embeddings.token_embedding.weight", ("text_model.", ""))
        return map_text("encoder", prefix, config) | take_linear("encoder.projection", f"{prefix}head")

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return IDS
