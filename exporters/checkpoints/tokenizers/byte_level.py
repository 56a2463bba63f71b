"""Byte-level BPE of `vocab.json` and `merges.txt` -> a tokenizer.json: GPT-2 (Radford et al. 2019), Whisper, Qwen 2,
and RoBERTa, whose texts always stand between <s> and </s>.

text -> words, numbers, signs -> bytes as letters -> merges
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.tokenizers.flags import follow_beside
from exporters.checkpoints.tokenizers.pairs import read_ids, read_merges

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
#: The tokenizers of this kind, by transformers' name, and the special tokens that they have without being told.
MODELS = {
    "GPT2Tokenizer": dict.fromkeys(_SPECIAL[:3], "<|endoftext|>"),
    "WhisperTokenizer": dict.fromkeys(_SPECIAL[:3], "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(_SPECIAL[1:], "<|endoftext|>"),
    "RobertaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    | {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
}


def make_byte_tokenizer(vocabulary: Path, name: str) -> dict[str, Any]:
    """The tokenizer.json that transformers would make of these files.

    Args:
        name: a key of MODELS.

    Raises:
        CheckpointError: merges.txt is missing, or a file is damaged.
    """
    folder = Folder(vocabulary.parent)
    config = folder.find_config("tokenizer_config.json")
    ids = read_ids(vocabulary)
    named = {**MODELS[name], **folder.find_config("special_tokens_map.json").data, **config.data}
    byte_level = {"type": "ByteLevel", "trim_offsets": True}
    prefixed = config.take("add_prefix_space", bool, False)
    letters = {**byte_level, "add_prefix_space": prefixed, "use_regex": name != "Qwen2Tokenizer"}
    split = {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    made: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if name == "Qwen2Tokenizer" else None,
        "pre_tokenizer": letters
        if name != "Qwen2Tokenizer"
        else {"type": "Sequence", "pretokenizers": [split, letters]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": ids,
            "merges": read_merges(vocabulary.with_name("merges.txt")),
        },
    }
    follow_beside(made, folder.path, name, MODELS[name])
    if made["post_processor"] is None:
        known = ids | {token["content"]: token["id"] for token in made["added_tokens"]}
        made["post_processor"] = _make_template(_list_marks(config), named, known)
    return made


def _list_marks(config: Config) -> tuple[str | None, str | None]:
    """What stands before and behind every text, where tokenizer_config.json asks for it."""
    begins, ends = (config.take(flag, bool, False) for flag in ("add_bos_token", "add_eos_token"))
    return "bos_token" if begins else None, "eos_token" if ends else None


def _make_template(marks: tuple[str | None, str | None], named: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """Beginning and end of every text."""
    around: list[list[dict[str, Any]]] = []
    special: dict[str, Any] = {}
    for key in marks:
        text = _read_text(named.get(key or ""))
        used = key is not None and text in ids
        around.append([{"SpecialToken": {"id": text, "type_id": 0}}] if used else [])
        special |= {str(text): {"id": text, "ids": [ids[str(text)]], "tokens": [text]}} if used else {}
    single = [*around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1]]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _read_text(token: Any) -> str | None:
    """Configs spell a special token as text, or as an object with its text."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
