"""CLIP's tokenizer in a diffusers pipeline: a `tokenizer.json`, or made of the `vocab.json` and `merges.txt`.

    text -> NFC, one space, lower case -> words, numbers, signs -> bytes as letters -> merges ("</w>" ends a word)
    -> <|startoftext|> ... <|endoftext|>

Nothing here needs transformers or tokenizers: both files are JSON and text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import read_config
from exporters.checkpoints.tokenizers.flags import follow_beside
from exporters.checkpoints.tokenizers.pairs import read_ids, read_merges
from specs.errors import CheckpointError

_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_USUAL = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}


def describe_clip_tokenizer(folder: Folder) -> dict[str, Any] | None:
    """The `tokenizers` entry of a text encoder; None where the folder has no tokenizer."""
    path = (folder.path / "tokenizer.json").resolve()
    if not path.is_file():
        path = (folder.path / "vocab.json").resolve()
    if not path.is_file():
        return None
    ids = _read_ids(path)
    named = {**folder.find_config("special_tokens_map.json").data, **folder.find_config("tokenizer_config.json").data}
    end = _find_id(ids, named.get("eos_token"), _END, path)
    return {"source": str(path), "end_tokens": [end], "pad_token": _find_id(ids, named.get("pad_token"), _END, path)}


def make_clip_tokenizer(vocabulary: Path) -> dict[str, Any]:
    """The tokenizer.json of a vocab.json with its merges.txt beside it.

    Raises:
        CheckpointError: merges.txt is missing, or a special token.
    """
    ids = _read_ids(vocabulary)
    start, end = (_find_id(ids, token, token, vocabulary) for token in (_START, _END))
    made: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [_END, end],
            "cls": [_START, start],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "unk_token": _END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "vocab": ids,
            "merges": read_merges(vocabulary.with_name("merges.txt")),
        },
    }
    follow_beside(made, vocabulary.parent, "CLIPTokenizer", _USUAL)
    return made


def _read_ids(path: Path) -> dict[str, int]:
    """token -> id of a vocab.json or a tokenizer.json."""
    if path.name == "vocab.json":
        return read_ids(path)
    data = read_config(path)
    ids = dict(data.take_config("model").take("vocab", dict))
    return ids | {token.take("content", str): token.take("id", int) for token in data.take_configs("added_tokens")}


def _find_id(ids: dict[str, int], token: object, default: str, path: Path) -> int:
    """A special token's id; configs spell it as text, or as an object with its text."""
    text = token.get("content") if isinstance(token, dict) else token
    text = text if isinstance(text, str) else default
    if type(ids.get(text)) is not int:
        raise CheckpointError(
            f"the tokenizer has no token {text!r}",
            where=str(path),
            got=f"{len(ids)} tokens",
            fix="copy or download the checkpoint again",
        )
    return ids[text]
