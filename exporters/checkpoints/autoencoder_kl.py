"""`AutoencoderKL` of diffusers: the autoencoder of Stable Diffusion 1 to 3, SDXL and PixArt.

encoder.{conv_in, down_blocks.N, mid_block, conv_norm_out, conv_out} -> quant_conv, and the decoder's mirror image
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, reshape, take
from exporters.checkpoints.files.rename import list_parameters, rename_all
from exporters.checkpoints.files.tensors import Tensors
from specs.components import VaeComponent
from specs.errors import CheckpointError
from specs.schema import Spec

_WORDS = (
    (r"^encoder\.stages", "encoder.down_blocks"),
    (r"^decoder\.stages", "decoder.up_blocks"),
    (r"(down_blocks\.\d+)\.resample", r"\1.downsamplers.0"),
    (r"(up_blocks\.\d+)\.resample", r"\1.upsamplers.0"),
    (r"\bmiddle\.resnets", "mid_block.resnets"),
    (r"\bmiddle\.attention", "mid_block.attentions.0"),
    (r"\boutput_norm", "conv_norm_out"),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\battentions\.0\.norm", "attentions.0.group_norm"),
    (r"\battentions\.0\.query", "attentions.0.to_q"),
    (r"\battentions\.0\.key", "attentions.0.to_k"),
    (r"\battentions\.0\.value", "attentions.0.to_v"),
    (r"\battentions\.0\.out", "attentions.0.to_out.0"),
)
#: What diffusers called them before 0.15; it still reads both.
_OLD_WORDS = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), (r"to_out\.0", "proj_attn"))


@final
class AutoencoderKlImporter(Importer):
    """A VAE on its own."""

    title = "AutoencoderKL"
    model_types = ("AutoencoderKL",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        vae = read_vae(folder.config)
        height, width = vae["sample_size"]
        latents = make_latent_dims(height, width)
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return {
            "modality": {"inputs": ["image"], "outputs": ["image"]},
            "architecture": "diffusion",
            "objective": "diffusion",
            "components": {"vae": vae},
            "dims": {
                **latents,
                "image_height": _scale(latents["height"], scale),
                "image_width": _scale(latents["width"], scale),
            },
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        return map_vae("vae", cast(VaeComponent, spec.components["vae"]), folder.tensors)


def read_vae(config: Config, *, encoder: bool = True) -> dict[str, Any]:
    """The component that a VAE's config describes."""
    channels = take_sizes(config, "block_out_channels", 1, default=[64])
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = config.take(key, list, [kind])
        if types != [kind] * len(channels):
            raise CheckpointError(
                f"'{key}' is {types} in the checkpoint's config, which is not implemented",
                where=config.where,
                allowed=f"{len(channels)} times {kind}",
                fix=USE_ONNX,
            )
    config.require("act_fn", ("silu", "swish"), "silu")
    config.require("latents_mean", (None,), None)
    config.require("latents_std", (None,), None)
    latents = [max(1, size >> (len(channels) - 1)) for size in take_pair(config, "sample_size", 32)]
    return {
        "kind": "diffusion.vae",
        "in_channels": config.take("in_channels", int, 3),
        "out_channels": config.take("out_channels", int, 3),
        "latent_channels": config.take("latent_channels", int, 4),
        "block_out_channels": channels,
        "layers_per_block": config.take("layers_per_block", int, 1),
        "norm_num_groups": config.take("norm_num_groups", int, 32),
        "mid_block_attention": config.take("mid_block_add_attention", bool, True),
        "quant_conv": config.take("use_quant_conv", bool, True),
        "post_quant_conv": config.take("use_post_quant_conv", bool, True),
        "encoder": encoder,
        "scaling_factor": config.take("scaling_factor", float, 0.18215),
        "shift_factor": config.take("shift_factor", float, 0.0),
        "force_upcast": config.take("force_upcast", bool, True),
        "sample_size": latents,
    }


def map_vae(component: str, config: VaeComponent, tensors: Tensors, prefix: str = "") -> dict[str, Recipe]:
    """Recipes for the parameters of `component`; the checkpoint's names have `prefix` before them."""
    from specs.models.diffusion.autoencoder import Autoencoder

    parameters = list_parameters(lambda: Autoencoder(config))
    old = f"{prefix}decoder.mid_block.attentions.0.query.weight" in tensors
    recipes = {}
    for ours, theirs in rename_all(parameters, _WORDS + (_OLD_WORDS if old else ())).items():
        name, shape = prefix + theirs, parameters[ours]
        # the first checkpoints kept these Linears as 1 by 1 convolutions
        folded = name in tensors and len(tensors[name].shape) == 4 and len(shape) == 2
        recipes[f"{component}.{ours}"] = reshape(name, *shape) if folded else take(name)
    return recipes


def take_sizes(config: Config, key: str, count: int, *, default: list[int] | None = None) -> list[int]:
    """A list of whole numbers, or one number for all `count` of them."""
    value = config.data.get(key)
    if value is None and default is not None:
        return list(default)
    if type(value) is int:
        return [value] * count
    values = config.take(key, list)
    if not values or not all(type(one) is int for one in values):
        raise CheckpointError(
            f"'{key}' in the checkpoint's config is not a list of whole numbers",
            where=config.where,
            got=repr(values)[:80],
            fix="correct it in the config",
        )
    return values


def take_pair(config: Config, key: str, default: int) -> tuple[int, int]:
    """Height and width: one number for both, or a list of two."""
    sizes = take_sizes(config, key, 2, default=[default, default])
    if len(sizes) != 2 or min(sizes) < 1:
        raise CheckpointError(
            f"'{key}' in the checkpoint's config is no height and width",
            where=config.where,
            fix="write one number, or a list of height and width",
        )
    return sizes[0], sizes[1]


def make_latent_dims(height: int, width: int, halvings: int = 0) -> dict[str, dict[str, int]]:
    """Pictures up to one and a half times the size that the model was made for, of any shape.

    Args:
        halvings: how often the model halves them; a size that would end as a single position is the only one.
    """
    smallest = 2 ** (halvings + 1)
    return {
        name: {"min": smallest, "opt": size, "max": size + size // 2}
        if size >= smallest
        else {"min": size, "opt": size, "max": size}
        for name, size in (("height", height), ("width", width))
    }


def _scale(dim: dict[str, int], factor: int) -> dict[str, int]:
    return {key: size * factor for key, size in dim.items()}
