"""Tokenizers of a checkpoint, as the spec names them."""

from __future__ import annotations

from typing import Any

from exporters.checkpoints.base import Folder


def describe_tokenizer(folder: Folder, *, part: str = "") -> dict[str, Any] | None:
    """A component's `tokenizers` entry, when the folder (or its subfolder `part`) has a tokenizer.json.

    End tokens are those of generation_config.json, else of config.json: one id or a list.
    """
    path = (folder.path / part / "tokenizer.json").resolve()
    if not path.is_file():
        return None
    generation = folder.find_config("generation_config.json")
    data = {**folder.find_config("config.json").data, **generation.data}
    ends = data.get("eos_token_id")
    pad = data.get("pad_token_id")
    entry: dict[str, Any] = {
        "source": str(path),
        "end_tokens": [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int and end >= 0],
    }
    if type(pad) is int and pad >= 0:
        entry["pad_token"] = pad
    return entry
