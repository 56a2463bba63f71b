"""Tokens that tokenizer_config.json names and a tokenizer.json does not know: the library adds them when it loads both.

They are looked for in every text before it is split. Where a class makes its post-processor anew, the tokens around
every text are those that the config names, too.

    added_tokens_decoder; bos_token, eos_token, ...; IMAGE_token; extra_special_tokens   -> added_tokens
    cls_token and sep_token, or bos_token and eos_token                                  -> post_processor
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from exporters.checkpoints.files.config import Config
from specs.errors import CheckpointError

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_Mark = tuple[str, str] | None  # the key of a token, and what stands for a missing one
_CLASS_AND_SEPARATOR: tuple[_Mark, _Mark] = (("cls_token", "<s>"), ("sep_token", "</s>"))
_BEGIN_AND_END: tuple[_Mark, _Mark] = (("bos_token", "<s>"), ("eos_token", "</s>"))
_BERT: tuple[_Mark, _Mark] = (("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
#: Classes that make their post-processor anew: what begins and what ends a text. GPT-NeoX's puts nothing around one,
#: whatever its tokenizer.json says.
_MARKS: dict[str, tuple[_Mark, _Mark]] = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "MPNetTokenizer": _CLASS_AND_SEPARATOR,
    "RobertaTokenizer": _CLASS_AND_SEPARATOR,
    "XLMRobertaTokenizer": _BEGIN_AND_END,
    "CamembertTokenizer": _BEGIN_AND_END,
    "CLIPTokenizer": (("bos_token", "<|startoftext|>"), ("eos_token", "<|endoftext|>")),
    "GPTNeoXTokenizer": (None, None),
    "T5Tokenizer": (None, ("eos_token", "</s>")),
}
#: Classes that make all of a tokenizer anew of its vocabulary: tokens that the file adds stay only where an
#: `added_tokens_decoder` has them, too.
_MADE_ANEW = (*_MARKS, "GPT2Tokenizer", "Qwen2Tokenizer", "WhisperTokenizer", "LlamaTokenizer", "GemmaTokenizer")


@final
@dataclass(frozen=True, kw_only=True)
class Beside:
    """The files beside a tokenizer.json, each empty where it is missing."""

    config: Mapping[str, Any]  # tokenizer_config.json
    special: Mapping[str, Any]  # special_tokens_map.json
    added: Mapping[str, Any]  # added_tokens.json


def follow_added(data: dict[str, Any], beside: Beside, kind: str) -> bool:
    """Change the mapping of a tokenizer.json as the library would; whether there was anything to change.

    Args:
        kind: the tokenizer's class, without "Fast"; empty for one of no model.

    Raises:
        CheckpointError: `split_special_tokens`, which no tokenizer.json can say.
    """
    config = dict(beside.config)
    if config.get("split_special_tokens"):
        raise CheckpointError(
            "'split_special_tokens' of tokenizer_config.json is not implemented",
            got="true: special tokens inside a text would be read as text",
            fix="set it to false",
        )
    stored = [dict(token) for token in data.get("added_tokens") or []]
    given = config.get("added_tokens_decoder")
    if not config.get("extra_special_tokens") and "additional_special_tokens" in config:
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    if given is None:
        config |= {key: _mark_special(value) for key, value in beside.special.items()}
        known = _list_known(stored, config, beside.added)
    else:
        known = {int(number): dict(token) for number, token in given.items()}
    found = {} if given is not None and kind in _MADE_ANEW else {token["content"]: token for token in stored}
    ids = _read_vocabulary(data)
    for token in _list_tokens(known, config, {*found}):
        content = token["content"]
        number = found[content]["id"] if content in found else ids.get(content, _find_next(found, ids))
        special = token["special"] or found.get(content, token)["special"]  # what was special is never written
        found[content] = {"id": number, **token, "special": special}
    if kind == "Qwen2Tokenizer":  # once more, plain
        for content in map(spell_token, (*_list_named(config), *_list_extra(config))):
            if content in found:
                found[content] = {"id": found[content]["id"], **_fill({"content": content, "special": True})}
    tokens = sorted(found.values(), key=lambda token: int(token["id"]))
    changed = tokens != sorted(stored, key=lambda token: int(token["id"]))
    if changed:
        data["added_tokens"] = tokens
    numbers = ids | {token["content"]: token["id"] for token in tokens}
    return _follow_marks(data, config, kind, numbers) or changed


def list_special(config: Mapping[str, Any], added: Config) -> list[str]:
    """Every token that the files name, once: of tokenizers that are no tokenizer.json."""
    decoder = list((config.get("added_tokens_decoder") or {}).values())
    named = [*_list_named(config), *_list_extra(config), *decoder, *added.data]
    return list(dict.fromkeys(filter(None, map(spell_token, named))))


def _list_known(
    stored: list[dict[str, Any]], config: Mapping[str, Any], added: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Without an `added_tokens_decoder`: added_tokens.json, and the file's own."""
    special = {spell_token(config.get(key)) for key in _NAMED} | {spell_token(one) for one in _list_extra(config)}
    known = {
        int(number): {"content": content, "special": content in special, "normalized": content not in special}
        for content, number in added.items()
    }
    return known | {int(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in stored}


def _list_tokens(
    known: Mapping[int, dict[str, Any]], config: Mapping[str, Any], before: set[str]
) -> Iterator[dict[str, Any]]:
    """What the library adds, in its order: the known ones, and those that are named and not among them."""
    spelled = {str(token.get("content")): token for token in known.values()}
    named = _list_named(config)
    texts = {spell_token(token) for token in named}
    for _, token in sorted(known.items()):
        yield _fill(token, special=token.get("content") in texts)
    seen, told = before | set(spelled), []
    for token in (*named, *_list_extra(config)):
        content = spell_token(token)
        if not content or content in seen or token in told:  # named twice, with other flags: the last ones count
            continue
        told.append(token)
        flags = token if isinstance(token, dict) else {"special": True}
        yield _fill({**flags, "content": content}, special=content in texts)


def _list_named(config: Mapping[str, Any]) -> list[Any]:
    """The special tokens of every model, then those of this one: `image_token` and the like."""
    own = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    extra = config.get("extra_special_tokens")
    own |= extra if isinstance(extra, dict) else {}
    return [config.get(key) for key in _NAMED] + [value for key, value in own.items() if key not in _NAMED]


def _list_extra(config: Mapping[str, Any]) -> list[Any]:
    """`extra_special_tokens`, or its older name where that is absent or a mapping, which names its tokens."""
    extra = config.get("extra_special_tokens")
    extra = config.get("additional_special_tokens") if extra is None or isinstance(extra, dict) else extra
    return extra if isinstance(extra, list) else []


def _fill(token: Mapping[str, Any], *, special: bool = False) -> dict[str, Any]:
    """All flags of a token, in a tokenizer.json's order. What is special is looked for in the text as it was given."""
    usual = {"normalized": not token.get("special", False)}
    flags = {key: bool(token.get(key, usual.get(key, False))) for key in _FLAGS}
    return {"content": token["content"], **flags, "special": special or flags["special"]}


def _follow_marks(data: dict[str, Any], config: Mapping[str, Any], kind: str, ids: Mapping[str, int]) -> bool:
    """The tokens around every text, where the class puts them there itself."""
    if kind not in _MARKS:
        return False
    begin, end = ([spell_token(config.get(mark[0])) or mark[1]] if mark else [] for mark in _MARKS[kind])
    wanted = begin + end
    if _read_marks(data.get("post_processor")) == wanted or not all(token in ids for token in wanted):
        return False
    before, behind = ([{"SpecialToken": {"id": token, "type_id": 0}} for token in part] for part in (begin, end))
    single: list[dict[str, Any]] = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *behind]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, *behind],
        "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in wanted},
    }
    return True


def _read_marks(step: Mapping[str, Any] | None) -> list[str] | None:
    """The tokens that a post-processor puts before and behind a text; None where it is of another form."""
    kind = (step or {}).get("type")
    if step is None or kind == "ByteLevel":
        return []
    if kind == "Sequence":
        parts = [_read_marks(part) for part in step.get("processors", [])]
        return next((part for part in parts if part), []) if None not in parts else None
    if kind in ("RobertaProcessing", "BertProcessing"):
        return [step["cls"][0], step["sep"][0]]
    if kind != "TemplateProcessing":
        return None
    return [part["SpecialToken"]["id"] for part in step.get("single", []) if "SpecialToken" in part]


def _read_vocabulary(data: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {piece[0]: number for number, piece in enumerate(vocabulary)}
    return dict(vocabulary)


def _find_next(found: Mapping[str, Mapping[str, Any]], ids: Mapping[str, int]) -> int:
    """The id of a token that is nowhere yet."""
    return max(len(ids), *(int(token["id"]) + 1 for token in found.values()), 0)


def _mark_special(value: Any) -> Any:
    """special_tokens_map.json describes tokens without saying that they are special."""
    return {**value, "special": True} if isinstance(value, dict) and "content" in value else value


def spell_token(token: Any) -> str | None:
    """A token is stored as its text, or as a mapping with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
