"""BERT's tokenizer from `vocab.txt` alone, as a tokenizer.json of the tokenizers library.

text -> clean, lower case, no accents -> words and signs -> longest pieces of the vocabulary -> [CLS] ... [SEP]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.tokenizers.flags import follow_beside
from specs.errors import CheckpointError

_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def describe_bert_tokenizer(folder: Folder) -> dict[str, Any] | None:
    """The `tokenizers` entry of an encoder: its tokenizer.json, else vocab.txt, else vocab.json with merges.txt."""
    said = folder.find_config("tokenizer_config.json").take("tokenizer_class", str, "RobertaTokenizer")
    known = folder.config.data.get("model_type") == "roberta" and said.removesuffix("Fast") == "RobertaTokenizer"
    pairs = ("vocab.json",) if known and (folder.path / "merges.txt").is_file() else ()
    for name in ("tokenizer.json", "vocab.txt", *pairs):
        path = (folder.path / name).resolve()
        if path.is_file():
            return {"source": str(path), "pad_token": folder.config.take("pad_token_id", int, 0)}
    return None


def make_word_piece(vocabulary: Path) -> dict[str, Any]:
    """The tokenizer.json of a vocab.txt, with the options of the tokenizer_config.json beside it.

    Raises:
        CheckpointError: the file cannot be read, or lacks a special token.
    """
    config = Folder(vocabulary.parent).find_config("tokenizer_config.json")
    try:
        lines = vocabulary.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "vocab.txt cannot be read",
            where=str(vocabulary),
            got=str(error)[:160],
            fix="copy or download the checkpoint again",
        ) from None
    ids = {line.rstrip("\r"): index for index, line in enumerate(lines) if line or index + 1 < len(lines)}
    tokens = {key: _spell(config, key, usual) for key, usual in _SPECIAL.items()}
    for token in (tokens["unk_token"], tokens["sep_token"], tokens["cls_token"]):
        if token not in ids:
            raise CheckpointError(
                f"vocab.txt has no token {token!r}",
                where=str(vocabulary),
                got=f"{len(ids)} tokens",
                fix="copy or download the checkpoint again",
            )
    start, end = tokens["cls_token"], tokens["sep_token"]
    special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (start, end)}
    made: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.take("tokenize_chinese_chars", bool, True),
            "strip_accents": config.data.get("strip_accents"),
            "lowercase": config.take("do_lower_case", bool, True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_place(start), {"Sequence": {"id": "A", "type_id": 0}}, _place(end)],
            "pair": [_place(start), {"Sequence": {"id": "A", "type_id": 0}}, _place(end)]
            + [{"Sequence": {"id": "B", "type_id": 1}}, _place(end, 1)],
            "special_tokens": special,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokens["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
    kind = config.take("tokenizer_class", str, "BertTokenizer").removesuffix("Fast")
    follow_beside(made, vocabulary.parent, kind, _SPECIAL)
    return made


def _place(token: str, segment: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": segment}}


def _spell(config: Config, key: str, usual: str) -> str:
    """A token is stored as its text, or as a mapping with its `content`."""
    token = config.data.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else usual
