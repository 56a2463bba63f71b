"""What the importers of CLIP, SigLIP and ViT share: configs of towers, and the names of their layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, reshape, stack_linear, take, take_linear, take_module
from exporters.checkpoints.parts.activations import read_activation
from specs.components import ClipTextComponent, VisionTransformerComponent
from specs.errors import CheckpointError

_QKV = ("q_proj", "k_proj", "v_proj")


def read_sizes(config: Config, *, activation: str, eps: float, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Sizes that every tower has; what is missing are the library's defaults.

    Args:
        sizes: defaults of hidden_size, num_hidden_layers, num_attention_heads, intermediate_size.
    """
    return {
        "hidden_size": config.take_count("hidden_size", sizes["hidden_size"]),
        "num_layers": config.take_count("num_hidden_layers", sizes["num_hidden_layers"]),
        "num_heads": config.take_count("num_attention_heads", sizes["num_attention_heads"]),
        "mlp_size": config.take_count("intermediate_size", sizes["intermediate_size"]),
        "activation": read_activation(config, "hidden_act", activation),
        "layer_norm_eps": config.take("layer_norm_eps", float, eps),
    }


def read_grid(config: Config, *, patch: int, image: int = 224, pairs: bool = False) -> dict[str, Any]:
    """`image_size`, `patch_size` and `num_channels`. What does not fill a whole patch is not seen, as convolutions do.

    Args:
        patch, image: what the library takes where the config says nothing.
        pairs: whether the library's model takes [height, width]; CLIP's and SigLIP's take one number.
    """
    pixels, side = _read_pair(config, "image_size", image, pairs), _read_pair(config, "patch_size", patch, pairs)
    grid: dict[str, Any] = {
        "image_size": spell_pair(pixels),
        "patch_size": spell_pair(side),
        "num_channels": config.take("num_channels", int, 3),
    }
    if pixels[0] % side[0] or pixels[1] % side[1]:
        grid["ignore_remainder"] = True
    return grid


def _read_pair(config: Config, key: str, default: int, pairs: bool) -> tuple[int, int]:
    value = config.data.get(key)
    value = default if value is None else value
    parts = value if isinstance(value, list) else [value, value]
    if (
        len(parts) != 2
        or not all(type(part) is int and part > 0 for part in parts)
        or (parts[0] != parts[1] and not pairs)
    ):
        raise CheckpointError(
            f"'{key}' in the checkpoint's config is no size that this model takes",
            where=config.where,
            got=repr(value)[:80],
            allowed="a whole number above 0" + (", or [height, width]" if pairs else ""),
            fix="restore the file: it belongs to the checkpoint",
        )
    return parts[0], parts[1]


def spell_pair(pair: tuple[int, int]) -> int | list[int]:
    """[height, width] as a spec writes it."""
    return pair[0] if pair[0] == pair[1] else list(pair)


def get_image(grid: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of what `read_grid` read."""
    size = grid["image_size"]
    return (size[0], size[1]) if isinstance(size, list) else (size, size)


def read_labels(config: Config) -> list[str]:
    """Class names in the order of the logits: `id2label`, else LABEL_0 and so on, `num_labels` of them (2)."""
    count = config.take_count("num_labels", 2)
    names = config.take_config("id2label").data or {str(index): f"LABEL_{index}" for index in range(count)}
    if sorted(names) != sorted(str(index) for index in range(len(names))):
        raise CheckpointError(
            "'id2label' does not number the classes from 0",
            where=config.where,
            got=", ".join(list(names)[:8]),
            fix="restore config.json: it belongs to the checkpoint",
        )
    return [str(names[str(index)]) for index in range(len(names))]


def has_tensor(folder: Folder, architectures: tuple[str, ...], *names: str) -> bool:
    """Whether the model has a part: by its tensors where there are any, else by the config's `architectures`."""
    if any(folder.path.glob("*.safetensors")):
        return any(name in folder.tensors for name in names)
    said = folder.config.take("architectures", list, [])
    return any(name in architectures for name in said)


def map_layers(ours: str, theirs: str, count: int) -> dict[str, Recipe]:
    """The layers of CLIP's and SigLIP's towers; `theirs` ends before `encoder`."""
    recipes: dict[str, Recipe] = {}
    for index in range(count):
        mine, yours = f"{ours}.layers.{index}", f"{theirs}encoder.layers.{index}"
        recipes |= take_module(f"{mine}.attention_norm", f"{yours}.layer_norm1", "weight", "bias")
        recipes |= take_module(f"{mine}.mlp_norm", f"{yours}.layer_norm2", "weight", "bias")
        recipes |= stack_linear(f"{mine}.attention.qkv", tuple(f"{yours}.self_attn.{part}" for part in _QKV))
        recipes |= take_linear(f"{mine}.attention.out", f"{yours}.self_attn.out_proj")
        recipes |= take_linear(f"{mine}.mlp.up", f"{yours}.mlp.fc1")
        recipes |= take_linear(f"{mine}.mlp.down", f"{yours}.mlp.fc2")
    return recipes


def map_vision(ours: str, theirs: str, config: VisionTransformerComponent) -> dict[str, Recipe]:
    """The image tower of CLIP or SigLIP, without projection and classes; `theirs` is "vision_model." or ""."""
    recipes = {
        f"{ours}.patch_embedding.weight": take(f"{theirs}embeddings.patch_embedding.weight"),
        f"{ours}.position_embedding": take(f"{theirs}embeddings.position_embedding.weight"),
        **map_layers(ours, theirs, config.num_layers),
    }
    if config.kind == "vision.clip":
        recipes[f"{ours}.class_token"] = take(f"{theirs}embeddings.class_embedding")
        recipes |= take_module(f"{ours}.input_norm", f"{theirs}pre_layrnorm", "weight", "bias")
    else:
        recipes[f"{ours}.patch_embedding.bias"] = take(f"{theirs}embeddings.patch_embedding.bias")
    if config.has_output_norm:
        recipes |= take_module(f"{ours}.output_norm", f"{theirs}post_layernorm", "weight", "bias")
    return recipes


def map_text(ours: str, theirs: str, config: ClipTextComponent) -> dict[str, Recipe]:
    """The text tower of CLIP or SigLIP, without what follows the norm; `theirs` is "text_model." or ""."""
    return {
        f"{ours}.token_embedding.weight": take(f"{theirs}embeddings.token_embedding.weight"),
        f"{ours}.position_embedding": take(f"{theirs}embeddings.position_embedding.weight"),
        **map_layers(ours, theirs, config.num_layers),
        **take_module(f"{ours}.output_norm", f"{theirs}final_layer_norm", "weight", "bias"),
    }


def take_scalar(name: str) -> Recipe:
    """A tensor of one value, whatever its rank."""
    return reshape(name)


#: Tables that old versions of the library stored.
IDS = {"*position_ids": "counted, not stored: 0, 1, 2 and so on"}


def make_classifier_spec(vision: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """The spec of an image tower whose tokens are averaged and classified."""
    return {
        "modality": {"inputs": ["image"], "outputs": ["label"]},
        "objective": "classification",
        "components": {"classifier": {**vision, "pooling": "mean", "num_classes": len(labels)}},
        "labels": labels,
    }


def make_pair_spec(
    vision: dict[str, Any], text: dict[str, Any], fusion: dict[str, Any], tokenizer: dict[str, Any] | None
) -> dict[str, Any]:
    """The spec of both towers, whose features are compared."""
    return {
        "modality": {"inputs": ["image", "text"], "outputs": ["embedding"]},
        "objective": "contrastive",
        "components": {"image_encoder": vision, "text_encoder": text, "fusion": fusion},
        **({"tokenizers": {"text_encoder": tokenizer}} if tokenizer else {}),
    }


def make_image_spec(encoder: dict[str, Any]) -> dict[str, Any]:
    """The spec of an image tower alone."""
    return {
        "modality": {"inputs": ["image"], "outputs": ["embedding"]},
        "objective": "contrastive",
        "components": {"encoder": encoder},
    }


def make_text_spec(encoder: dict[str, Any], tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    """The spec of a text tower alone."""
    length = encoder["context_length"]
    return {
        "modality": {"inputs": ["text"], "outputs": ["embedding"]},
        "objective": "contrastive",
        "components": {"encoder": encoder},
        "dims": {"tokens": {"min": 1, "opt": length, "max": length}},
        **({"tokenizers": {"encoder": tokenizer}} if tokenizer else {}),
    }
