"""MobileViT (Mehta and Rastegari 2022): `MobileViTModel` and `MobileViTForImageClassification`.

[mobilevit.]conv_stem -> encoder.layer.{0, 1}.layer.M (inverted residuals)
-> encoder.layer.{2, 3, 4}.{downsampling_layer, conv_kxk, conv_1x1, transformer, layernorm, conv_projection, fusion}
-> conv_1x1_exp -> classifier
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, stack_linear, take, take_linear, take_module
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.convolutions import STATISTICS_UNUSED, make_picture_spec, read_sizes, take_conv_norm
from exporters.checkpoints.parts.pictures import MOBILEVIT
from exporters.checkpoints.parts.towers import get_image, has_tensor, read_grid
from specs.components import MobileVitComponent
from specs.components.vision.mobilevit import DEPTHS
from specs.errors import CheckpointError
from specs.schema import Spec

_NECKS = [16, 32, 64, 96, 128, 160, 640]
_RESIDUAL = {"expand": "expand_1x1", "mix": "conv_3x3", "reduce": "reduce_1x1"}


@final
class MobileVitImporter(Importer):
    """`MobileViTModel`, `MobileViTForImageClassification`."""

    title = "MobileViT"
    model_types = ("mobilevit",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        if has_tensor(folder, ("MobileViTForSemanticSegmentation",), "segmentation_head.classifier.convolution.weight"):
            raise CheckpointError(
                "this MobileViT segments pictures, which is not implemented", where=config.where, fix=USE_ONNX
            )
        patch = config.take("patch_size", int, 2)
        grid = read_grid(Config({**config.data, "patch_size": 1}, config.where), patch=1, image=256, pairs=True)
        tower: dict[str, Any] = {
            "kind": "vision.mobilevit",
            "num_channels": grid["num_channels"],
            "patch_size": patch,
            "neck_hidden_sizes": read_sizes(config, "neck_hidden_sizes", _NECKS),
            "hidden_sizes": read_sizes(config, "hidden_sizes", [144, 192, 240]),
            "num_heads": config.take("num_attention_heads", int, 4),
            "mlp_ratio": config.take("mlp_ratio", float, 2.0),
            "expand_ratio": config.take("expand_ratio", float, 4.0),
            "conv_kernel_size": config.take("conv_kernel_size", int, 3),
            "output_stride": _read_stride(config),
            "activation": read_activation(config, "hidden_act", "silu"),
            "qkv_bias": config.take("qkv_bias", bool, True),
            "layer_norm_eps": config.take("layer_norm_eps", float, 1e-5),
        }
        return make_picture_spec(
            folder,
            tower,
            architecture="hybrid",
            classifier=("MobileViTForImageClassification", "classifier.weight"),
            image=get_image(grid),
            usual=MOBILEVIT,
        )

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        ((name, component),) = spec.components.items()
        config = cast(MobileVitComponent, component)
        prefix = folder.tensors.find_prefix("conv_stem.convolution.weight", ("mobilevit.", ""))
        recipes = take_conv_norm(f"{name}.stem", f"{prefix}conv_stem")
        for stage, depth in enumerate(DEPTHS):
            ours, theirs = f"{name}.stages.{stage}", f"{prefix}encoder.layer.{stage}"
            if stage < 2:
                for index in range(depth):
                    recipes |= _take_residual(f"{ours}.{index}", f"{theirs}.layer.{index}")
            else:
                recipes |= _take_block(ours, theirs, depth, qkv_bias=config.qkv_bias)
        recipes |= take_conv_norm(f"{name}.output", f"{prefix}conv_1x1_exp")
        if config.num_classes:
            recipes |= take_linear(f"{name}.head", "classifier")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return STATISTICS_UNUSED


def _read_stride(config: Config) -> int:
    """The library dilates at 8 and at 16, and takes every other number for 32."""
    stride = config.take("output_stride", int, 32)
    return stride if stride in (8, 16) else 32


def _take_residual(ours: str, theirs: str) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for mine, yours in _RESIDUAL.items():
        recipes |= take_conv_norm(f"{ours}.{mine}", f"{theirs}.{yours}")
    return recipes


def _take_block(ours: str, theirs: str, depth: int, *, qkv_bias: bool) -> dict[str, Recipe]:
    recipes = _take_residual(f"{ours}.downsample", f"{theirs}.downsampling_layer")
    for mine, yours in {"near": "conv_kxk", "output": "conv_projection", "fusion": "fusion"}.items():
        recipes |= take_conv_norm(f"{ours}.{mine}", f"{theirs}.{yours}")
    recipes[f"{ours}.input.weight"] = take(f"{theirs}.conv_1x1.convolution.weight")
    recipes |= take_module(f"{ours}.norm", f"{theirs}.layernorm", "weight", "bias")
    for index in range(depth):
        mine, yours = f"{ours}.layers.{index}", f"{theirs}.transformer.layer.{index}"
        recipes |= take_module(f"{mine}.attention_norm", f"{yours}.layernorm_before", "weight", "bias")
        recipes |= take_module(f"{mine}.mlp_norm", f"{yours}.layernorm_after", "weight", "bias")
        qkv = tuple(f"{yours}.attention.attention.{part}" for part in ("query", "key", "value"))
        recipes |= stack_linear(f"{mine}.attention.qkv", qkv, bias=qkv_bias)
        recipes |= take_linear(f"{mine}.attention.out", f"{yours}.attention.output.dense")
        recipes |= take_linear(f"{mine}.mlp.up", f"{yours}.intermediate.dense")
        recipes |= take_linear(f"{mine}.mlp.down", f"{yours}.output.dense")
    return recipes
