"""CLIP (Radford et al. 2021): the whole model, either tower alone, with and without projection, and as a classifier.

vision_model.{embeddings, pre_layrnorm, encoder.layers.N, post_layernorm} -> visual_projection
text_model.{embeddings, encoder.layers.N, final_layer_norm} -> text_projection;  logit_scale;  classifier
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, take, take_linear
from exporters.checkpoints.parts.decoder import require_causal
from exporters.checkpoints.parts.pictures import CLIP, read_pictures
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
from exporters.checkpoints.tokenizers.clip import describe_clip_tokenizer
from specs.components import ClipTextComponent, VisionTransformerComponent
from specs.schema import Spec

_VISION = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
_WHOLE = {"architectures": ("CLIPModel",)}
_OLD_END_TOKEN = 2  # configs before transformers 4.31 say so, and mean the largest id


def read_vision(config: Config, folder: Folder) -> dict[str, Any]:
    """CLIP's `vision_config` as a component."""
    require_causal(config, causal=False)
    grid = read_grid(config, patch=32)
    return {
        "kind": "vision.clip",
        **grid,
        **read_sizes(config, activation="quick_gelu", eps=1e-5, sizes=_VISION),
        **read_pictures(folder, get_image(grid), grid["num_channels"], CLIP),
    }


def read_text(config: Config) -> dict[str, Any]:
    """CLIP's `text_config` as a component."""
    require_causal(config)
    end = config.take("eos_token_id", int, 49407)
    vocab_size = config.take("vocab_size", int, 49408)
    return {
        "kind": "text.clip",
        "vocab_size": vocab_size,
        "context_length": config.take("max_position_embeddings", int, 77),
        **read_sizes(config, activation="quick_gelu", eps=1e-5, sizes=_TEXT),
        **({} if end == _OLD_END_TOKEN else {"end_token": end}),
    }


@final
class ClipImporter(Importer):
    """`CLIPModel`, `CLIPForImageClassification`."""

    title = "CLIP"
    model_types = ("clip",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        vision = read_vision(_take_part(config, "vision_config"), folder)
        if has_tensor(folder, ("CLIPForImageClassification",), "classifier.weight"):
            return make_classifier_spec(vision, read_labels(config))
        fusion = {"kind": "fusion.late", "projection_size": config.take("projection_dim", int, 512)}
        text = read_text(_take_part(config, "text_config"))
        return make_pair_spec(vision, text, fusion, describe_clip_tokenizer(folder))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        if "classifier" in spec.components:
            classifier = cast(VisionTransformerComponent, spec.components["classifier"])
            return map_vision("classifier", "vision_model.", classifier) | take_linear("classifier.head", "classifier")
        image = cast(VisionTransformerComponent, spec.components["image_encoder"])
        text = cast(ClipTextComponent, spec.components["text_encoder"])
        return {
            **map_vision("image_encoder", "vision_model.", image),
            **map_text("text_encoder", "text_model.", text),
            "fusion.projection.image.weight": take("visual_projection.weight"),
            "fusion.projection.text.weight": take("text_projection.weight"),
            "fusion.logit_scale": take_scalar("logit_scale"),
        }

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        reasons = dict(IDS)
        if "classifier" in spec.components:
            reasons["vision_model.post_layernorm.*"] = "the classifier averages tokens that are not normalised"
        return reasons


@final
class ClipVisionImporter(Importer):
    """`CLIPVisionModel`, `CLIPVisionModelWithProjection`."""

    title = "CLIP image tower"
    model_types = ("clip_vision_model",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        encoder = read_vision(folder.config, folder)
        if has_tensor(folder, ("CLIPVisionModelWithProjection",), "visual_projection.weight"):
            encoder["projection_size"] = folder.config.take("projection_dim", int, 512)
        return make_image_spec(encoder)

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(VisionTransformerComponent, spec.components["encoder"])
        prefix = folder.tensors.find_prefix("embeddings.patch_embedding.weight", ("vision_model.", ""))
        recipes = map_vision("encoder", prefix, config)
        if config.projection_size:
            recipes["encoder.projection.weight"] = take("visual_projection.weight")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return IDS


@final
class ClipTextImporter(Importer):
    """`CLIPTextModel`, `CLIPTextModelWithProjection`."""

    title = "CLIP text tower"
    model_types = ("clip_text_model",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        encoder = read_text(folder.config)
        if has_tensor(folder, ("CLIPTextModelWithProjection",), "text_projection.weight"):
            encoder["projection_size"] = folder.config.take("projection_dim", int, 512)
        return make_text_spec(encoder, describe_clip_tokenizer(folder))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(ClipTextComponent, spec.components["encoder"])
        prefix = folder.tensors.find_prefix("embeddings.token_embedding.weight", ("text_model.", ""))
        recipes = map_text("encoder", prefix, config)
        if config.projection_size:
            recipes["encoder.projection.weight"] = take("text_projection.weight")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return IDS


def _take_part(config: Config, key: str) -> Config:
    """A tower's config; `<key>_dict`, which old files have beside it, stands for all of it."""
    old = f"{key}_dict"
    return config.take_config(old if config.data.get(old) else key)
