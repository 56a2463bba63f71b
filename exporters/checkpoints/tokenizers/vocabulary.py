"""`vocab.json` of a CTC checkpoint: what each id spells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config
from specs.errors import CheckpointError


@final
@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Labels in the order of the logits, none where the checkpoint has none; and the component's options for it."""

    labels: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def read_vocabulary(folder: Folder, *, vocab_size: int) -> Vocabulary:
    """As `Wav2Vec2CTCTokenizer` reads it; the blank is its padding token.

    An id that the file does not name is spelled like an unknown one. A multilingual file holds a vocabulary for each
    language; the one of the tokenizer's `target_lang` is taken.

    Raises:
        CheckpointError: it is no mapping of labels to ids, or has no such language.
    """
    config, tokenizer = folder.config, folder.find_config("tokenizer_config.json")
    ids = _take_language(folder.find_config("vocab.json"), tokenizer)
    if not ids:
        return Vocabulary(options={"blank_token": min(config.take("pad_token_id", int, 0), vocab_size - 1)})
    special = {**folder.find_config("special_tokens_map.json").data, **tokenizer.data}
    unknown, padding = _spell(special.get("unk_token"), "<unk>"), _spell(special.get("pad_token"), "<pad>")
    ids = {**folder.find_config("added_tokens.json").data, **ids}
    labels = [unknown] * vocab_size
    for label, token in ids.items():
        if type(token) is not int or token < 0:
            raise CheckpointError(
                "vocab.json does not map labels to ids",
                where=str(folder.path),
                got=f"{label!r}: {token!r}"[:120],
                fix="copy or download the checkpoint again",
            )
        if token < vocab_size:
            labels[token] = label
    delimiter = _spell(special.get("word_delimiter_token"), "|")
    if special.get("replace_word_delimiter_char") not in (None, " "):
        tokenizer.require("replace_word_delimiter_char", (" ",), " ")
    return Vocabulary(
        labels=tuple(labels),
        options={
            "blank_token": ids.get(padding, min(config.take("pad_token_id", int, 0), vocab_size - 1)),
            "word_delimiter": delimiter,
            "lower_case": tokenizer.take("do_lower_case", bool, False),
        },
    )


def _take_language(file: Config, tokenizer: Config) -> dict[str, Any]:
    nested = {key: value for key, value in file.data.items() if isinstance(value, dict)}
    if not nested:
        return dict(file.data)
    language = tokenizer.take("target_lang", str, "eng")
    if language not in nested:
        raise CheckpointError(
            f"vocab.json has no vocabulary for the language '{language}'",
            where=file.where,
            allowed=", ".join(nested)[:200],
            fix="set target_lang in tokenizer_config.json",
        )
    return dict(nested[language])


def _spell(token: Any, default: str) -> str:
    """A token is stored as its text, or as a mapping with its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else default
