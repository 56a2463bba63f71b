"""Text to token ids and back.

`bytes` needs nothing: an id is a byte of UTF-8. `tokenizers` reads a `tokenizer.json` that the bundle carries, and
needs the package of that name when text is first handed over.
"""

from __future__ import annotations

import codecs
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

from engines.runtime.fields import take_field
from specs.bundle import Manifest, resolve_inside, verify_files
from specs.errors import BundleError, MissingDependency, name_nearest

_BYTE_VALUES = 256


class Tokenizer(ABC):
    """Text <-> ids."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without padding."""

    @abstractmethod
    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text as far as it is certain after each id; joined, the whole text."""

    @final
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`."""
        return "".join(self.decode_stream(ids))

    def decode_words(self, ids: Iterable[int]) -> str:
        """The text of `ids` without tokens that stand for no text: ends, languages, tasks."""
        return self.decode(ids)


@final
class BytesTokenizer(Tokenizer):
    """UTF-8 bytes as ids; an id that is no byte is shown as `<id>`, and bytes that are no UTF-8 as U+FFFD."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            if token < _BYTE_VALUES:
                yield decoder.decode(bytes((token,)))
            else:
                yield decoder.decode(b"", final=True) + f"<{token}>"
                decoder.reset()
        yield decoder.decode(b"", final=True)


@final
class FileTokenizer(Tokenizer):
    """A Hugging Face `tokenizer.json`, through the `tokenizers` package."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            module = importlib.import_module("tokenizers")
        except ImportError:
            raise MissingDependency(
                "this bundle's tokenizer needs the package 'tokenizers', which is not installed",
                fix="pip install tokenizers, or hand over token ids",
            ) from None
        try:
            return module.Tokenizer.from_file(str(self._path))
        except Exception as error:  # the package raises plain Exception
            raise BundleError("the tokenizer cannot be read", where=str(self._path), got=str(error)) from error

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text).ids]

    def decode_words(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        seen: list[int] = []
        shown = ""
        for token in ids:
            seen.append(token)
            text = self._tokenizer.decode(seen, skip_special_tokens=False)
            if not text.endswith("\ufffd"):  # a character may need more than one token
                yield text[len(shown) :]
                shown = text
        yield self._tokenizer.decode(seen, skip_special_tokens=False)[len(shown) :]


def make_tokenizer(folder: Path, manifest: Manifest, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `pipeline.tokenizer` describes; its file is verified here and read on first use."""
    kind = take_field(config, "kind", str, at="pipeline.tokenizer")
    if kind == "bytes":
        return BytesTokenizer()
    if kind == "tokenizers":
        file = take_field(config, "file", str, "assets/tokenizer.json", at="pipeline.tokenizer")
        verify_files(folder, manifest, (file,))
        return FileTokenizer(resolve_inside(folder, file))
    raise BundleError(
        f"unknown tokenizer kind '{kind}'", where=str(folder), allowed=name_nearest(kind, ("bytes", "tokenizers"))
    )
