"""ViT (Dosovitskiy et al. 2020): `ViTModel` with and without its pooler, and `ViTForImageClassification`.

[vit.]{embeddings, encoder.layer.N.{layernorm_before, attention, layernorm_after, intermediate, output}, layernorm}
-> pooler, or classifier. transformers 5 calls the same parts `layers.N.{attention.q_proj, mlp.fc1}` in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.recipes import Recipe, reshape, stack_linear, take_linear, take_module
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import require_causal
from exporters.checkpoints.parts.pictures import VIT, read_pictures
from exporters.checkpoints.parts.towers import (
    get_image,
    has_tensor,
    make_image_spec,
    read_grid,
    read_labels,
    read_sizes,
)
from specs.components import VisionTransformerComponent
from specs.schema import Spec

_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
#: query, key, value; output; MLP up, down: as saved, and as transformers 5 calls them in memory
_SAVED = (
    tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    ("attention.output.dense", "intermediate.dense", "output.dense"),
)
_IN_MEMORY = (
    tuple(f"attention.{part}_proj" for part in "qkv"),
    ("attention.o_proj", "mlp.fc1", "mlp.fc2"),
)


@final
class VitImporter(Importer):
    """`ViTModel`, `ViTForImageClassification`."""

    title = "ViT"
    model_types = ("vit",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        require_causal(config, causal=False)
        grid = read_grid(config, patch=16, pairs=True)
        sizes = read_sizes(config, activation="gelu", eps=1e-12, sizes=_SIZES)
        config.require(
            "head_dim", (sizes["hidden_size"] // sizes["num_heads"],), sizes["hidden_size"] // sizes["num_heads"]
        )
        tower: dict[str, Any] = {
            "kind": "vision.vit",
            **grid,
            **sizes,
            "qkv_bias": config.take("qkv_bias", bool, True),
            **read_pictures(folder, get_image(grid), grid["num_channels"], VIT),
        }
        if has_tensor(folder, ("ViTForImageClassification",), "classifier.weight"):
            labels = read_labels(config)
            return {
                "modality": {"inputs": ["image"], "outputs": ["label"]},
                "objective": "classification",
                "components": {"classifier": {**tower, "num_classes": len(labels)}},
                "labels": labels,
            }
        if has_tensor(folder, ("ViTModel",), "pooler.dense.weight", "vit.pooler.dense.weight"):
            tower["pooler_size"] = config.take("pooler_output_size", int, sizes["hidden_size"])
            tower["pooler_activation"] = read_activation(config, "pooler_act", "tanh")
        return make_image_spec(tower)

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        ((name, component),) = spec.components.items()
        config = cast(VisionTransformerComponent, component)
        prefix = folder.tensors.find_prefix("embeddings.cls_token", ("vit.", ""))
        width = config.hidden_size
        recipes = {
            f"{name}.class_token": reshape(f"{prefix}embeddings.cls_token", width),
            f"{name}.position_embedding": reshape(f"{prefix}embeddings.position_embeddings", config.num_tokens, width),
            **take_linear(f"{name}.patch_embedding", f"{prefix}embeddings.patch_embeddings.projection"),
            **take_module(f"{name}.output_norm", f"{prefix}layernorm", "weight", "bias"),
        }
        is_saved = f"{prefix}layers.0.layernorm_before.weight" not in folder.tensors
        stem, (qkv, (out, up, down)) = ("encoder.layer", _SAVED) if is_saved else ("layers", _IN_MEMORY)
        for index in range(config.num_layers):
            ours, theirs = f"{name}.layers.{index}", f"{prefix}{stem}.{index}"
            recipes |= take_module(f"{ours}.attention_norm", f"{theirs}.layernorm_before", "weight", "bias")
            recipes |= take_module(f"{ours}.mlp_norm", f"{theirs}.layernorm_after", "weight", "bias")
            recipes |= stack_linear(
                f"{ours}.attention.qkv", tuple(f"{theirs}.{part}" for part in qkv), bias=config.qkv_bias
            )
            recipes |= take_linear(f"{ours}.attention.out", f"{theirs}.{out}")
            recipes |= take_linear(f"{ours}.mlp.up", f"{theirs}.{up}")
            recipes |= take_linear(f"{ours}.mlp.down", f"{theirs}.{down}")
        if config.num_classes:
            recipes |= take_linear(f"{name}.head", "classifier")
        if config.pooler_size:
            recipes |= take_linear(f"{name}.pooler", f"{prefix}pooler.dense")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return {
            "*embeddings.mask_token": "stands for hidden patches in training",
            "*pooler.dense.*": "the classifier reads the class token itself",
        }
