"""Text models that were saved with a head for another task: refused by name, before a tensor is looked for."""

from __future__ import annotations

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import USE_ONNX
from exporters.checkpoints.parts.towers import has_tensor
from specs.errors import CheckpointError

#: A tensor of each head for classes of texts or tokens, for answers and for choices, in all of the library's models.
_HEADS = (
    "score.weight",
    "classifier.weight",
    "classifier.dense.weight",
    "pre_classifier.weight",
    "classification_head.dense.weight",
    "qa_outputs.weight",
    "multiple_choice_head.summary.weight",
)


def refuse_heads(folder: Folder, allowed: str) -> None:
    """CheckpointError where the checkpoint has a head that is not implemented.

    Args:
        allowed: what the family is without one.
    """
    if has_tensor(folder, (), *_HEADS):
        raise CheckpointError(
            "a text model with a head for classes or answers is not implemented",
            where=folder.config.where,
            got=", ".join(map(str, folder.config.take("architectures", list, []))) or "a head beside the model",
            allowed=allowed,
            fix=USE_ONNX,
        )
