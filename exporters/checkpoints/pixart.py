"""`PixArtTransformer2DModel` of diffusers, which older ones saved as `Transformer2DModel`.

pos_embed.proj -> adaln_single, caption_projection -> transformer_blocks.N -> scale_shift_table -> proj_out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, take
from exporters.checkpoints.files.rename import list_parameters, rename_all
from exporters.checkpoints.parts.diffusers_words import ATTENTION_WORDS
from specs.components import DitComponent
from specs.schema import Spec

_WORDS = (
    (r"^layers\.", "transformer_blocks."),
    (r"^(transformer_blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    *ATTENTION_WORDS,
    (r"^(transformer_blocks\.\d+)\.up\.", r"\1.ff.net.0.proj."),
    (r"^(transformer_blocks\.\d+)\.down\.", r"\1.ff.net.2."),
    (r"^patch_embedding", "pos_embed.proj"),
    (r"^time_embedding", "adaln_single.emb.timestep_embedder"),
    (r"^resolution_embedding", "adaln_single.emb.resolution_embedder"),
    (r"^ratio_embedding", "adaln_single.emb.aspect_ratio_embedder"),
    (r"^time_modulation", "adaln_single.linear"),
    (r"^output_modulation$", "scale_shift_table"),
    (r"\.linear([12])\.", r".linear_\1."),
)


_SIZES = "use_additional_conditions"  # null, as the library saves what it was not told, is its default and no "no"


@final
class PixArtImporter(Importer):
    """PixArt-alpha and -sigma."""

    title = "PixArtTransformer2DModel"
    model_types = ("PixArtTransformer2DModel", "Transformer2DModel")

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        dit = read_dit(folder.config)
        height, width = dit["sample_size"]
        return {
            "modality": {"inputs": ["latents"], "outputs": ["latents"]},
            "architecture": "diffusion",
            "objective": "diffusion",
            "components": {"dit": dit},
            "dims": {
                "height": {"min": height, "opt": height, "max": height},
                "width": {"min": width, "opt": width, "max": width},
                "tokens": {"min": 1, "opt": 120, "max": 512},
            },
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(DitComponent, spec.components["dit"])
        from specs.models.diffusion.dit import Dit

        names = rename_all(list_parameters(lambda: Dit(config)), _WORDS)
        return {f"dit.{ours}": take(theirs) for ours, theirs in names.items()}

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return {"pos_embed.pos_embed": "computed from the size"}


def read_dit(config: Config) -> dict[str, Any]:
    """The component that a transformer's config describes."""
    old = config.data.get("_class_name") == "Transformer2DModel"
    config.require("norm_type", ("ada_norm_single",), "layer_norm" if old else "ada_norm_single")
    config.require("activation_fn", ("gelu-approximate",), "geglu" if old else "gelu-approximate")
    config.require("norm_elementwise_affine", (False,), old)
    config.require("norm_eps", (1e-6,), 1e-5 if old else 1e-6)
    config.require("attention_type", ("default",), "default")
    for key in ("only_cross_attention", "double_self_attention"):
        config.require(key, (False,), False)
    config.require("num_vector_embeds", (None,), None)
    heads = config.take("num_attention_heads", int, 16)
    side = config.take("sample_size", int) if old else config.take("sample_size", int, 128)
    channels = config.take("in_channels", int) if old else config.take("in_channels", int, 4)
    out_channels = channels if old or "out_channels" in config.data else 8
    dit: dict[str, Any] = {
        "kind": "diffusion.dit",
        "in_channels": channels,
        "out_channels": config.take("out_channels", int, out_channels),
        "hidden_size": heads * config.take("attention_head_dim", int, 88 if old else 72),
        "num_layers": config.take("num_layers", int, 1 if old else 28),
        "num_heads": heads,
        "patch_size": config.take("patch_size", int) if old else config.take("patch_size", int, 2),
        "attention_bias": config.take("attention_bias", bool, not old),
        "size_conditions": config.take(_SIZES, bool) if _SIZES in config else side == 128,
        "interpolation_scale": config.take("interpolation_scale", float, float(max(side // 64, 1))),
        "base_size": side,
        "upcast_attention": config.take("upcast_attention", bool, False),
        "sample_size": [side, side],
    }
    if "cross_attention_dim" in config or not old:
        dit["cross_attention_size"] = config.take("cross_attention_dim", int, 1152)
    if "caption_channels" in config:
        dit["caption_size"] = config.take("caption_channels", int)
    return dit
