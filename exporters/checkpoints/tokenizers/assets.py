"""Tokenizers of a checkpoint: how the spec names them, and the tokenizer.json that a bundle carries.

    tokenizer.json               copied, with the flags of tokenizer_config.json
    vocab.txt                    made: BERT's pieces of words
    vocab.json and merges.txt    made: byte-level BPE as GPT-2, Qwen 2, Whisper and CLIP have it

Nothing here needs transformers or tokenizers: all these files are JSON and text. Where tokenizers is installed, what is
written is tried with it: it is what `run` opens it with.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.tokenizers.bert import make_word_piece
from exporters.checkpoints.tokenizers.byte_level import MODELS, make_byte_tokenizer
from exporters.checkpoints.tokenizers.chat import describe_chat
from exporters.checkpoints.tokenizers.clip import make_clip_tokenizer
from exporters.checkpoints.tokenizers.flags import UNREADABLE, follow_flags, refuse_together
from specs.errors import CheckpointError

#: model_type -> the tokenizer's class, of folders that do not say it.
_TOKENIZERS = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "whisper": "WhisperTokenizer"}
_TOKENIZERS |= {"roberta": "RobertaTokenizer"}


def describe_tokenizer(folder: Folder, *, part: str = "") -> dict[str, Any] | None:
    """A component's `tokenizers` entry, when the folder (or its subfolder `part`) has a tokenizer that is read here.

    End tokens are those of generation_config.json, else of config.json: one id or a list.
    """
    path = find_tokenizer(folder.path / part)
    if path is None:
        return None
    config = folder.find_config("config.json")
    inner = config.take_config("text_config").data  # of a model that has a language model inside
    data = {**inner, **config.data, **folder.find_config("generation_config.json").data}
    ends = data.get("eos_token_id") if data.get("eos_token_id") is not None else inner.get("eos_token_id")
    pad = data.get("pad_token_id")
    entry: dict[str, Any] = {
        "source": str(path),
        "end_tokens": [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int and end >= 0],
    }
    if type(pad) is int and pad >= 0:
        entry["pad_token"] = pad
    return entry | describe_chat(folder)


def find_tokenizer(folder: Path) -> Path | None:
    """The file that a folder's tokenizer is made of; None where there is none, or only one of another library."""
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json").resolve()
    vocabulary = folder / "vocab.json"
    whole = vocabulary.is_file() and (folder / "merges.txt").is_file()
    return vocabulary.resolve() if whole and _name_class(folder) in MODELS else None


def write_tokenizer(source: Path, path: Path) -> None:
    """`source` as a tokenizer.json: copied, or made of a vocab.txt, or of a vocab.json and the merges.txt beside it.

    Raises:
        CheckpointError: a file is damaged, or merges.txt is missing.
    """
    data = _make_tokenizer(source) if source.name in ("vocab.json", "vocab.txt") else follow_flags(source)
    _try_tokenizer(source, data)
    path.write_bytes(data)


def _make_tokenizer(source: Path) -> bytes:
    name = _name_class(source.parent)
    try:
        if source.name == "vocab.txt":
            made = make_word_piece(source)
        else:
            made = make_byte_tokenizer(source, name) if name in MODELS else make_clip_tokenizer(source)
        return json.dumps(made, ensure_ascii=False).encode()
    except UNREADABLE as error:
        raise refuse_together(source, error) from None


def _try_tokenizer(source: Path, data: bytes) -> None:
    """CheckpointError where the tokenizers library would not read `data`; without it, where they are no JSON."""
    try:
        json.loads(data)
        if importlib.util.find_spec("tokenizers"):
            importlib.import_module("tokenizers").Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - plain Exception, and for a panic of its Rust a BaseException
        raise CheckpointError(
            "the tokenizer cannot be read",
            where=str(source),
            got=str(error).split("\n")[0][:160],
            allowed="what the tokenizers library takes",
            fix="copy or download the checkpoint again",
        ) from None


def _name_class(folder: Path) -> str:
    """GPT2Tokenizer, Qwen2Tokenizer, ...; of an old folder that does not say, by the model."""
    named = _find(folder, "tokenizer_config.json").data.get("tokenizer_class")
    if isinstance(named, str):
        return named.removesuffix("Fast")
    model = _find(folder, "config.json").data.get("model_type")
    return _TOKENIZERS.get(str(model), "CLIPTokenizer")


def _find(folder: Path, name: str) -> Config:
    return Folder(folder).find_config(name)
