"""Pipelines of diffusers as folders: Stable Diffusion 1 and 2, and SDXL.

model_index.json -> tokenizer, text_encoder, tokenizer_2, text_encoder_2, unet, vae, scheduler (a subfolder each)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.autoencoder_kl import make_latent_dims, map_vae, read_vae
from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.clip import read_text
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, take
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.parts.scheduler import read_scheduler
from exporters.checkpoints.parts.towers import IDS, map_text
from exporters.checkpoints.tokenizers.clip import describe_clip_tokenizer
from exporters.checkpoints.unet import add_text_time, map_unet, read_unet
from specs.components import ClipTextComponent, UNetComponent, VaeComponent
from specs.errors import CheckpointError
from specs.schema import Spec

_ENCODERS = ("text_encoder", "text_encoder_2")
_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
_LARGE = "StableDiffusionXLPipeline"


@final
class StableDiffusionImporter(Importer):
    """`StableDiffusionPipeline` and `StableDiffusionXLPipeline`."""

    title = "Stable Diffusion and SDXL pipelines"
    model_types = ("StableDiffusionPipeline", _LARGE)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        index = folder.find_config("model_index.json")
        encoders = _list_encoders(index)
        components: dict[str, Any] = {part: _read_encoder(folder.open(part).config, part) for part in encoders}
        config = folder.open("unet").config
        last = components[encoders[-1]]
        text_size = last.get("projection_size", last["hidden_size"])
        unet = components["unet"] = add_text_time(read_unet(config), config, text_size=text_size)
        height, width = unet["sample_size"]
        components["vae"] = read_vae(folder.open("vae").config, encoder=False)
        large = index.data.get("_class_name") == _LARGE
        components["scheduler"] = {
            **read_scheduler(folder.open("scheduler").find_config("scheduler_config.json")),
            "steps": 50,
            "guidance_scale": 5.0 if large else 7.5,
            "empty_prompt": "zeros" if large and index.take("force_zeros_for_empty_prompt", bool, True) else "text",
        }
        tokenizers = {
            part: describe_clip_tokenizer(folder.open(part.replace("text_encoder", "tokenizer"))) for part in encoders
        }
        return {
            "modality": {"inputs": ["text"], "outputs": ["image"]},
            "architecture": "diffusion",
            "objective": "diffusion",
            "components": components,
            "dims": {
                "batch": {"min": 1, "opt": 2, "max": 8},
                **make_latent_dims(height, width, len(unet["block_out_channels"]) - 1),
            },
            "tokenizers": {part: entry for part, entry in tokenizers.items() if entry},
        }

    def open_tensors(self, folder: Folder) -> Tensors:
        return folder.join_tensors(*_list_encoders(folder.find_config("model_index.json")), "unet", "vae")

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        tensors = self.open_tensors(folder)
        recipes: dict[str, Recipe] = {}
        for part in _ENCODERS:
            if part in spec.components:
                config = cast(ClipTextComponent, spec.components[part])
                prefix = tensors.find_prefix("embeddings.token_embedding.weight", (f"{part}/text_model.", f"{part}/"))
                recipes |= map_text(part, prefix, config)
                if config.projection_size:
                    recipes[f"{part}.projection.weight"] = take(f"{part}/text_projection.weight")
        recipes |= map_unet("unet", cast(UNetComponent, spec.components["unet"]), tensors, "unet/")
        return recipes | map_vae("vae", cast(VaeComponent, spec.components["vae"]), tensors, "vae/")

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        encodes = "text to image only decodes"
        return {**IDS, "vae/encoder.*": encodes, "vae/quant_conv.*": encodes}


def _list_encoders(index: Config) -> tuple[str, ...]:
    """The text encoders that the pipeline has; every part must be of a class that is implemented."""
    for part, allowed in _CLASSES.items():
        entry = index.data.get(part)
        if part == "text_encoder_2" and entry is None:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in allowed:
            raise CheckpointError(
                f"the pipeline's '{part}' is not implemented",
                where=index.where,
                got=repr(entry)[:80],
                allowed=" or ".join(allowed),
                fix=USE_ONNX,
            )
    return tuple(part for part in _ENCODERS if index.data.get(part) is not None)


def _read_encoder(config: Config, part: str) -> dict[str, Any]:
    config.require("use_attention_mask", (False,), False)
    encoder = read_text(config)
    if part == "text_encoder_2":
        encoder["projection_size"] = config.take("projection_dim", int, 512)
    return encoder
