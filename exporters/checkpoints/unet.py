"""`UNet2DConditionModel` of diffusers: the denoiser of Stable Diffusion 1 and 2, SDXL and its refiner.

time_embedding, add_embedding -> conv_in -> down_blocks.N -> mid_block -> up_blocks.N -> conv_norm_out -> conv_out

diffusers' `attention_head_dim` is the number of heads: a misnomer of its first version that all configs keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.autoencoder_kl import make_latent_dims, take_pair, take_sizes
from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, reshape, take
from exporters.checkpoints.files.rename import list_parameters, rename_all
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.parts.diffusers_words import ATTENTION_WORDS
from specs.components import UNetComponent
from specs.errors import CheckpointError
from specs.schema import Spec

_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MIDDLE = {"UNetMidBlock2DCrossAttn": "cross_attention", "UNetMidBlock2D": "resnet", None: "none"}
_DEFAULT_DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
_DEFAULT_UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3

#: What only changes numbers with values that are not implemented: key -> (what is taken, the default).
_REQUIRED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "act_fn": (("silu", "swish"), "silu"),
    "dual_cross_attention": ((False,), False),
    "class_embed_type": ((None,), None),
    "class_embeddings_concat": ((False,), False),
    "addition_embed_type": ((None, "text_time"), None),
    "encoder_hid_dim_type": ((None, "text_proj"), None),
    "time_embedding_type": (("positional",), "positional"),
    "time_embedding_act_fn": ((None,), None),
    "timestep_post_act": ((None,), None),
    "time_cond_proj_dim": ((None,), None),
    "attention_type": (("default",), "default"),
    "cross_attention_norm": ((None,), None),
    "num_attention_heads": ((None,), None),
    "resnet_time_scale_shift": (("default", "scale_shift"), "default"),
}

_WORDS = (
    (r"^down\.", "down_blocks."),
    (r"^up\.", "up_blocks."),
    (r"^middle\.", "mid_block."),
    (r"^(down_blocks\.\d+)\.resample", r"\1.downsamplers.0"),
    (r"^(up_blocks\.\d+)\.resample", r"\1.upsamplers.0"),
    (r"\.transformers\.", ".attentions."),
    (r"(\.attentions\.\d+)\.layers\.", r"\1.transformer_blocks."),
    *ATTENTION_WORDS,
    (r"\.mlp\.up\.", ".ff.net.0.proj."),
    (r"\.mlp\.down\.", ".ff.net.2."),
    (r"\.time_projection\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"^added_embedding", "add_embedding"),
    (r"_embedding\.linear([12])\.", r"_embedding.linear_\1."),
    (r"^encoder_projection", "encoder_hid_proj"),
    (r"^output_norm", "conv_norm_out"),
)


@final
class UNetImporter(Importer):
    """A U-Net on its own."""

    title = "UNet2DConditionModel"
    model_types = ("UNet2DConditionModel",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        unet = add_text_time(read_unet(folder.config), folder.config, text_size=None)
        height, width = unet["sample_size"]
        return {
            "modality": {"inputs": ["latents"], "outputs": ["latents"]},
            "architecture": "diffusion",
            "objective": "diffusion",
            "components": {"unet": unet},
            "dims": make_latent_dims(height, width, len(unet["block_out_channels"]) - 1),
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        return map_unet("unet", cast(UNetComponent, spec.components["unet"]), folder.tensors)


def read_unet(config: Config) -> dict[str, Any]:
    """The component that a U-Net's config describes."""
    for key, (allowed, default) in _REQUIRED.items():
        config.require(key, allowed, default)
    down = _take_types(config, "down_block_types", _DOWN, _DEFAULT_DOWN)
    count = len(down)
    channels = take_sizes(config, "block_out_channels", 1, default=[320, 640, 1280, 1280])
    up = _take_types(config, "up_block_types", _UP, _DEFAULT_UP)
    if not len(up) == len(channels) == count:
        raise CheckpointError(
            "the config has different numbers of blocks and channels",
            where=config.where,
            fix="give down_block_types, up_block_types and block_out_channels one entry a level",
        )
    middle = "UNetMidBlock2DCrossAttn"
    if "mid_block_type" in config.data:  # null means that there is none
        middle = config.data["mid_block_type"] and config.require("mid_block_type", tuple(_MIDDLE), middle)
    layers = _take_layers(config, "transformer_layers_per_block", count) or [1] * count
    unet: dict[str, Any] = {
        "kind": "diffusion.unet",
        "in_channels": config.take("in_channels", int, 4),
        "out_channels": config.take("out_channels", int, 4),
        "block_out_channels": channels,
        "down_attention": down,
        "up_attention": up,
        "mid_block": _MIDDLE[middle],
        "layers_per_block": take_sizes(config, "layers_per_block", count, default=[2] * count),
        "transformer_layers": layers,
        "num_heads": take_sizes(config, "attention_head_dim", count, default=[8] * count),
        "cross_attention_size": _take_context(config, [*down, middle == "UNetMidBlock2DCrossAttn"], up),
        "norm_num_groups": config.take("norm_num_groups", int, 32),
        "norm_eps": config.take("norm_eps", float, 1e-5),
        "flip_sin_to_cos": config.take("flip_sin_to_cos", bool, True),
        "freq_shift": config.take("freq_shift", float, 0.0),
        "time_scale_shift": config.data.get("resnet_time_scale_shift") == "scale_shift",
        "conv_in_kernel": config.take("conv_in_kernel", int, 3),
        "conv_out_kernel": config.take("conv_out_kernel", int, 3),
        "downsample_padding": config.require("downsample_padding", (0, 1), 1),
        "mid_block_scale_factor": config.take("mid_block_scale_factor", float, 1.0),
        "center_input_sample": config.take("center_input_sample", bool, False),
        "upcast_attention": config.take("upcast_attention", bool, False),
        "sample_size": list(take_pair(config, "sample_size", 64)),
    }
    up_layers = _take_layers(config, "reverse_transformer_layers_per_block", count)
    if up_layers:
        unet["up_transformer_layers"] = up_layers
    only_cross = _take_only_cross(config, count)
    if any(only_cross):
        unet["only_cross_attention"] = only_cross
    for ours, theirs in (
        ("time_embedding_size", "time_embedding_dim"),
        ("num_classes", "num_class_embeds"),
        ("encoder_size", "encoder_hid_dim"),
    ):
        if theirs in config:
            unet[ours] = config.take(theirs, int)
    return unet


def add_text_time(unet: dict[str, Any], config: Config, *, text_size: int | None) -> dict[str, Any]:
    """SDXL's condition: the width of its pooled text is not in the U-Net's own config, only the sum of all."""
    if config.data.get("addition_embed_type") != "text_time":
        return unet
    total = config.take("projection_class_embeddings_input_dim", int)
    wide = config.take("addition_time_embed_dim", int)
    if text_size is None:
        text_size = next((total - n * wide for n in (6, 5) if total - n * wide in _POOLED_SIZES), total - 6 * wide)
    count, left = divmod(total - text_size, max(1, wide))
    if left or count < 1 or text_size < 1:
        raise CheckpointError(
            "'projection_class_embeddings_input_dim' does not fit the pooled text and the added numbers",
            where=config.where,
            got=f"{total} = {text_size} + {total - text_size}",
            allowed=f"the pooled text's width and a multiple of addition_time_embed_dim {wide}",
            fix="correct it in the config, or download the checkpoint again",
        )
    return unet | {
        "added_condition": "text_time",
        "added_text_size": text_size,
        "added_time_size": wide,
        "added_time_count": count,
    }


#: Widths of pooled texts in use: a U-Net on its own does not say how many numbers it takes beside (6, the refiner 5).
_POOLED_SIZES = (1280, 768, 1024)


def map_unet(component: str, config: UNetComponent, tensors: Tensors, prefix: str = "") -> dict[str, Recipe]:
    """Recipes for the parameters of `component`; the checkpoint's names have `prefix` before them."""
    from specs.models.diffusion.unet import UNet

    parameters = list_parameters(lambda: UNet(config))
    recipes = {}
    for ours, theirs in rename_all(parameters, _WORDS).items():
        name, shape = prefix + theirs, parameters[ours]
        # without use_linear_projection, a transformer's projections are 1 by 1 convolutions
        folded = name in tensors and len(tensors[name].shape) == 4 and len(shape) == 2
        recipes[f"{component}.{ours}"] = reshape(name, *shape) if folded else take(name)
    return recipes


def _take_types(config: Config, key: str, known: Mapping[str, bool], default: list[str]) -> list[bool]:
    types = [str(one).removeprefix("UNetRes") for one in config.take(key, list, default)]  # what they were called first
    for one in types:
        if one not in known:
            raise CheckpointError(
                f"'{key}' names {one!r} in the checkpoint's config, which is not implemented",
                where=config.where,
                allowed=", ".join(known),
                fix=USE_ONNX,
            )
    return [known[one] for one in types]


def _take_layers(config: Config, key: str, count: int) -> list[Any]:
    """Transformer layers of each block: one number for all, one a block, or a list a block; empty when absent."""
    value = config.data.get(key)
    if value is None:
        return []
    return [value] * count if type(value) is int else config.take(key, list)


def _take_context(config: Config, down: list[bool], up: list[bool]) -> int:
    """`cross_attention_dim`: one for the whole model, since one text is what all blocks look at."""
    sizes = take_sizes(config, "cross_attention_dim", len(up), default=[1280] * len(up))
    sizes_down, sizes_up = [*sizes, sizes[-1]], sizes[::-1]
    used = {s for s, on in zip(sizes_down, down, strict=True) if on} | {
        s for s, on in zip(sizes_up, up, strict=True) if on
    }
    if len(used) > 1:
        raise CheckpointError(
            "'cross_attention_dim' differs between blocks of the checkpoint's config, and they share one text",
            where=config.where,
            got=str(sizes),
            fix=USE_ONNX,
        )
    return used.pop() if used else sizes[0]


def _take_only_cross(config: Config, count: int) -> list[bool]:
    value = config.data.get("only_cross_attention")
    if isinstance(value, list) and len(value) == count and all(type(one) is bool for one in value):
        return value
    return [config.take("only_cross_attention", bool, False)] * count
