"""Where tokenizer_config.json says otherwise than tokenizer.json, the library follows the first: so does the bundle.

    BertNormalizer's lowercase, strip_accents, handle_chinese_chars <- do_lower_case, strip_accents,
                                                                       tokenize_chinese_chars
    ByteLevel's add_prefix_space                                    <- add_prefix_space
    added tokens, and those around every text                       <- added.py
    the side on which a long text is cut                            <- truncation_side

A named class makes these steps anew, of its flags or, where one is absent, of its defaults. A class of no model
(PreTrainedTokenizerFast) takes the file's steps as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporters.checkpoints.tokenizers.added import Beside, follow_added
from specs.errors import CheckpointError

_BERT = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer")
_BYTES = ("GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "RobertaTokenizer", "WhisperTokenizer")
#: Our class of a folder that names none, by its `model_type`.
_BY_MODEL = {"bert": _BERT[0], "distilbert": _BERT[1], "mpnet": _BERT[2], "gpt2": _BYTES[0], "whisper": _BYTES[4]}
#: Key of a BertNormalizer -> the flag, and what the class takes where it is absent.
_NORMALISES = {
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
}

#: What reading free-form JSON as a tokenizer's raises where it is something else.
UNREADABLE = (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError)


def follow_flags(source: Path) -> bytes:
    """The bytes of a tokenizer.json; others than the file's where the files beside it say so.

    Raises:
        CheckpointError: a file is damaged, or says what no tokenizer.json can.
    """
    content = source.read_bytes()
    config, kind = _read(source.parent / "tokenizer_config.json"), _name_class(source.parent)
    try:
        data = json.loads(content)
        changed = [_set(step, key, value) for step, key, value in _list_wanted(data, config, kind)]
        changed.append(follow_beside(data, source.parent, kind))
        return json.dumps(data, ensure_ascii=False).encode() if any(changed) else content
    except UNREADABLE as error:
        raise refuse_together(source, error) from None


def refuse_together(source: Path, error: Exception) -> CheckpointError:
    """For one of `UNREADABLE`: these files are JSON, and not what the library writes."""
    return CheckpointError(
        f"the tokenizer cannot be read: {source.name} and the files beside it do not make one",
        where=str(source),
        got=f"{type(error).__name__}: {error}"[:160],
        fix="copy or download the checkpoint again",
    )


def follow_beside(data: dict[str, Any], folder: Path, kind: str, usual: Mapping[str, str] | None = None) -> bool:
    """Add what the folder's other files add to the mapping of a tokenizer.json; whether there was anything.

    Args:
        kind: the tokenizer's class, without "Fast".
        usual: special tokens by key where the files do not name them; of a tokenizer that is made anew.

    Raises:
        CheckpointError: as `follow_added`.
    """
    config = {**(usual or {}), **_read(folder / "tokenizer_config.json")}
    special, added = (_read(folder / name) for name in ("special_tokens_map.json", "added_tokens.json"))
    changed = follow_added(data, Beside(config=config, special=special, added=added), kind)
    return _set_side(data, config.get("truncation_side")) or changed


def _name_class(folder: Path) -> str:
    """The tokenizer's class without "Fast"; of a folder that names none, by its `model_type`."""
    named = _read(folder / "tokenizer_config.json").get("tokenizer_class")
    return str(named or _BY_MODEL.get(str(_read(folder / "config.json").get("model_type")))).removesuffix("Fast")


def _list_wanted(data: dict[str, Any], config: dict[str, Any], kind: str) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(step, key, value) of every step that the class makes anew."""
    if kind in _BERT:
        for step in _walk(data.get("normalizer"), "normalizers"):
            if step.get("type") == "BertNormalizer":
                yield from ((step, key, config.get(flag, usual)) for key, (flag, usual) in _NORMALISES.items())
        return
    if kind not in _BYTES:
        return
    for step in _walk(data.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "ByteLevel":
            yield step, "add_prefix_space", bool(config.get("add_prefix_space"))


def _walk(step: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """A step, or those of a sequence."""
    if step is not None:
        yield step
        for one in step.get(parts, []):
            yield from _walk(one, parts)


def _set_side(data: dict[str, Any], side: Any) -> bool:
    """Which end of a long text is cut: where the file has no word of it, it gets one, for `FileTokenizer` to read."""
    cut = data.get("truncation")
    if side not in ("left", "right") or (cut is None and side == "right"):
        return False
    if cut is None:
        cut = data["truncation"] = {"max_length": 512, "strategy": "LongestFirst", "stride": 0}
    return _set(cut, "direction", side.capitalize())


def _set(step: dict[str, Any], key: str, value: Any) -> bool:
    changed = bool(step.get(key) != value)
    step[key] = value
    return changed


def _read(path: Path) -> dict[str, Any]:
    """A JSON mapping beside the tokenizer; empty where there is none. Code that it names is never run."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read",
            where=str(path),
            got=str(error)[:160],
            fix="copy or download the checkpoint again",
        ) from None
    return data if isinstance(data, dict) else {}
