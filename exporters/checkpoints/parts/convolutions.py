"""What the importers of convolutional classifiers share: a convolution with its batch norm, and the spec around."""

from __future__ import annotations

from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, take
from exporters.checkpoints.parts.pictures import Processor, read_picture_size, read_pictures
from exporters.checkpoints.parts.towers import has_tensor, read_labels, spell_pair
from specs.errors import CheckpointError

STATISTICS_UNUSED = {"*.num_batches_tracked": "a note of training"}
_NORM = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def take_conv_norm(ours: str, theirs: str) -> dict[str, Recipe]:
    """`convolution` and `normalization`; the two become one product in the graph, not here."""
    recipes = {f"{ours}.norm.{mine}": take(f"{theirs}.normalization.{yours}") for mine, yours in _NORM.items()}
    recipes[f"{ours}.conv.weight"] = take(f"{theirs}.convolution.weight")
    return recipes


def read_sizes(config: Config, key: str, default: list[int]) -> list[int]:
    """A list of whole numbers.

    Raises:
        CheckpointError: it is something else.
    """
    sizes = config.take(key, list, default)
    if not all(type(size) is int for size in sizes):
        raise CheckpointError(
            f"'{key}' in the checkpoint's config is not a list of whole numbers",
            where=config.where,
            got=repr(sizes)[:80],
            fix="restore the file: it belongs to the checkpoint",
        )
    return sizes


def make_picture_spec(
    folder: Folder,
    tower: dict[str, Any],
    *,
    architecture: str,
    classifier: tuple[str, str],
    image: tuple[int, int],
    usual: Processor,
) -> dict[str, Any]:
    """The spec of a classifier, or of the tower alone.

    Args:
        classifier: the library's class with a head, and the head's tensor.
        image: height and width where no image processor says them: such models take any.
    """
    image = read_picture_size(folder, usual) or image
    tower = {
        **tower,
        "image_size": spell_pair(image),
        **read_pictures(folder, image, tower["num_channels"], usual),
    }
    kind, head = classifier
    if has_tensor(folder, (kind,), head):
        labels = read_labels(folder.config)
        return {
            "modality": {"inputs": ["image"], "outputs": ["label"]},
            "architecture": architecture,
            "objective": "classification",
            "components": {"classifier": {**tower, "num_classes": len(labels)}},
            "labels": labels,
        }
    return {
        "modality": {"inputs": ["image"], "outputs": ["embedding"]},
        "architecture": architecture,
        "objective": "classification",
        "components": {"encoder": tower},
    }
