"""What the checkpoints of models that listen have in common."""

from __future__ import annotations

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config


def find_feature_extractor(folder: Folder) -> Config:
    """How samples become the model's input; empty when the checkpoint does not say.

    Its own file until transformers 4, a part of processor_config.json from 5 on.
    """
    own = folder.find_config("preprocessor_config.json")
    return own if own.data else folder.find_config("processor_config.json").take_config("feature_extractor")


def describe_speech(objective: str) -> dict[str, object]:
    """Sound in, text out."""
    return {"modality": {"inputs": ["audio"], "outputs": ["text"]}, "objective": objective}
