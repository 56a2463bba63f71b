"""Text to the ids of its characters, as models of speech read it (MMS and VITS, Pratap et al. 2023).

text -> lower case, what has no id left out -> parts between special tokens -> an id each -> id 0 before, between and
behind them

A special token is an id without blanks. MMS calls whatever has id 0 its padding, which is a letter: a text that begins
with it begins without a blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

from engines.runtime.fields import take_field, take_strings
from engines.runtime.text.tokenizers import Tokenizer
from specs.errors import InputError


@final
class CharacterTokenizer(Tokenizer):
    """As `pipeline.tokenizer` describes it: `characters` are what each id spells, in order."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._characters = take_strings(config, "characters")
        self._ids = {spelled: token for token, spelled in enumerate(self._characters)}
        self._add_blank = take_field(config, "add_blank", bool, at="pipeline.tokenizer")
        self._unknown = str(config.get("unknown", "<unk>"))
        self._special = take_strings(config, "special_tokens") if "special_tokens" in config else ()
        self._normalise = take_field(config, "normalise", bool, at="pipeline.tokenizer")
        self._romanised = bool(config.get("romanised"))
        self._language = str(config.get("language", ""))

    def encode(self, text: str, *, longest: int | None = None) -> list[int]:
        """Ids of the text.

        Raises:
            InputError: none of its characters has an id; or one has none, and may not be left out.
        """
        ids = [token for part in self._part(self.spell(text)) for token in self._read(part)]
        if not ids:
            raise InputError(
                "nothing in this text can be spoken",
                got=repr(text)[:80],
                allowed="".join(one for one in self._characters if len(one) == 1),
                fix="write words in these characters",
            )
        return ids[:longest]

    def _part(self, text: str) -> list[str]:
        """Special tokens, the longest first, and what is between them."""
        names = sorted(filter(None, self._special), key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
        return [part for part in parts if part]

    def _read(self, part: str) -> list[int]:
        """The ids of a special token, or of characters with their blanks."""
        if part in self._special:
            return [self._ids[part]]
        ids = [self._find(character) for character in part]
        return [0, *(one for token in ids for one in (token, 0))] if self._add_blank else ids

    def spell(self, text: str) -> str:
        """The text as it is spoken: in lower case, without what has no id."""
        if self._normalise:
            text = self._lower(text)
        if self._language == "ron":
            text = text.replace("\u021b", "\u0163")  # Romanian: t with a comma below, which the training text lacks
        if self._romanised and not text.isascii():
            raise InputError(
                "this voice was trained on text in Latin letters",
                got=repr(text)[:80],
                allowed="text that uroman romanised",
                fix="pip install uroman; python -m uroman < TEXT, and hand over what it gives",
            )
        return "".join(one for one in text if one in self._ids).strip() if self._normalise else text

    def _lower(self, text: str) -> str:
        """Lower case, but for what has an id as it is."""
        lowered, at = [], 0
        while at < len(text):
            known = next((one for one in self._characters if one and text.startswith(one, at)), None)
            lowered.append(text[at].lower() if known is None else known)
            at += len(known or text[at])
        return "".join(lowered)

    def _find(self, character: str) -> int:
        token = self._ids.get(character, self._ids.get(self._unknown))
        if token is None:
            raise InputError(
                "this voice has no id for a character of the text",
                got=repr(character),
                allowed="".join(one for one in self._characters if len(one) == 1),
                fix="leave the character out, or write it in these",
            )
        return token

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The characters; those of id 0 only where they are no blank."""
        for token in ids:
            if token or not self._add_blank:
                yield self._characters[token]
