"""LLaVA 1.5 and what is built alike: an image tower, a projector of two Linears, and a decoder of the Llama line.

vision_tower -> multi_modal_projector.{linear_1, linear_2} -> language_model;  lm_head
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from pydantic import ValidationError

from exporters.checkpoints import clip, siglip
from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, take_linear
from exporters.checkpoints.gemma import Gemma2Importer, GemmaImporter
from exporters.checkpoints.llama import LlamaImporter
from exporters.checkpoints.mistral import MistralImporter
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import (
    DecoderImporter,
    explain_decoder,
    make_generation_spec,
    map_decoder,
    refuse_quantised,
    require_causal,
)
from exporters.checkpoints.parts.towers import IDS, map_vision
from exporters.checkpoints.phi3 import Phi3Importer
from exporters.checkpoints.qwen import Qwen2Importer, Qwen3Importer
from specs.components import DecoderComponent, ProjectorComponent, VisionTransformerComponent
from specs.errors import CheckpointError
from specs.schema import Spec

_TOWERS = {"clip_vision_model": clip.read_vision, "siglip_vision_model": siglip.read_vision}
_DECODERS: dict[str, DecoderImporter] = {
    importer.model_types[0]: importer
    for importer in (
        LlamaImporter(),
        MistralImporter(),
        Qwen2Importer(),
        Qwen3Importer(),
        Phi3Importer(),
        GemmaImporter(),
        Gemma2Importer(),
    )
}
_LANGUAGE = ("language_model.model.", "model.language_model.", "language_model.", "model.language_model.model.")
_HEADS = ("language_model.lm_head.weight", "lm_head.weight", "model.language_model.lm_head.weight")
_VISION = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower.")
_PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")


@final
class LlavaImporter(Importer):
    """`LlavaForConditionalGeneration`."""

    title = "LLaVA"
    model_types = ("llava",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        refuse_quantised(config)
        decoder, positions = _describe_decoder(config)
        tower = _describe_tower(config, folder)
        layers = _read_layers(config, tower["num_layers"])
        tower |= {"pooling": "none", "num_layers": max(1, *layers)}
        projector = {
            "kind": "fusion.projector",
            "activation": read_activation(config, "projector_hidden_act", "gelu"),
            "bias": config.take("multimodal_projector_bias", bool, True),
            "feature_layers": layers,
            "skip_tokens": int(_take_strategy(config) == "default"),
            "image_token": config.take_first(("image_token_index", "image_token_id"), int, 32000),
        }
        spec = make_generation_spec(folder, decoder, positions)
        pieces = count_pieces(tower, projector)
        dims = spec["dims"]
        longest = dims["cache"]["max"]
        dims["tokens"] = {"min": 1, "opt": min(pieces + 64, longest), "max": longest}
        dims["media_tokens"] = {"min": pieces, "opt": pieces, "max": max(pieces, longest // pieces * pieces)}
        return {
            **spec,
            "modality": {"inputs": ["image", "text"], "outputs": ["text"]},
            "components": {"image_encoder": tower, "projector": projector, "decoder": decoder},
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        tower = cast(VisionTransformerComponent, spec.components["image_encoder"])
        projector = cast(ProjectorComponent, spec.components["projector"])
        tensors = folder.tensors
        before = tensors.find_prefix("linear_1.weight", _PROJECTOR)
        return {
            **map_vision(
                "image_encoder.tower", tensors.find_prefix("embeddings.patch_embedding.weight", _VISION), tower
            ),
            **take_linear("projector.up", f"{before}linear_1", bias=projector.bias),
            **take_linear("projector.out", f"{before}linear_2", bias=projector.bias),
            **map_decoder(
                cast(DecoderComponent, spec.components["decoder"]),
                tensors,
                prefix=tensors.find_prefix("embed_tokens.weight", _LANGUAGE),
                head=_find_head(folder),
            ),
        }

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        read = cast(VisionTransformerComponent, spec.components["image_encoder"]).num_layers
        behind = range(read, _describe_tower(folder.config, folder)["num_layers"])
        return {
            **{
                f"*vision_tower*.encoder.layers.{layer}.*": "behind the last layer whose features are read"
                for layer in behind
            },
            "*vision_tower*.post_layernorm.*": "the projector reads tokens before this norm",
            "*vision_tower*.head.*": "the projector reads tokens, not what is pooled from them",
            **IDS,
            **explain_decoder(cast(DecoderComponent, spec.components["decoder"]), head=_find_head(folder)),
        }


def count_pieces(tower: Mapping[str, Any], projector: Mapping[str, Any]) -> int:
    """Tokens that one picture becomes."""
    try:
        config = VisionTransformerComponent.model_validate(tower)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"the checkpoint's config contradicts itself: vision_config: {first['msg']}",
            where=".".join(map(str, first["loc"])) or None,
            fix="restore config.json: it belongs to the checkpoint",
        ) from None
    pieces = config.num_tokens - int(projector["skip_tokens"])
    if pieces < 1:
        raise CheckpointError(
            "the checkpoint's config contradicts itself: a picture would become no token",
            where="vision_config",
            got=f"image_size {tower['image_size']}, patch_size {tower['patch_size']}",
            fix="restore config.json: it belongs to the checkpoint",
        )
    return pieces


def _describe_decoder(config: Config) -> tuple[dict[str, Any], int]:
    """The decoder, and how many positions it was made for."""
    given = config.take_config("text_config")
    kind = given.require("model_type", tuple(_DECODERS), "llama")
    text = _DECODERS[kind].complete(given)
    refuse_quantised(text)
    require_causal(text)
    decoder = _DECODERS[kind].describe(text)
    decoder.pop("logit_softcap", None)  # the library's LLaVA has a head of its own, without Gemma 2's cap
    if config.take("tie_word_embeddings", bool, False):
        decoder["tie_embeddings"] = True
    return decoder, text.take("max_position_embeddings", int, 2048)


def _describe_tower(config: Config, folder: Folder) -> dict[str, Any]:
    vision = config.take_config("vision_config")
    kind = vision.require("model_type", tuple(_TOWERS), "clip_vision_model")
    return _TOWERS[kind](vision, folder)


def _take_strategy(config: Config) -> str:
    allowed = ("default", "full")
    return str(config.require("vision_feature_select_strategy", allowed, "default"))


def _read_layers(config: Config, count: int) -> list[int]:
    """`vision_feature_layer`, one or several, counted from 0: what the first layer reads."""
    given = config.data.get("vision_feature_layer", -2)
    layers = given if isinstance(given, list) else [given]
    if not layers or not all(type(layer) is int and -count - 1 <= layer <= count for layer in layers):
        raise CheckpointError(
            "'vision_feature_layer' names no layer of the image tower",
            where=config.where,
            got=repr(given)[:80],
            allowed=f"{-count - 1} to {count}, one or a list",
            fix=USE_ONNX,
        )
    return [layer if layer >= 0 else count + 1 + layer for layer in layers]


def _find_head(folder: Folder) -> str:
    return next((name for name in _HEADS if name in folder.tensors), _HEADS[0])
