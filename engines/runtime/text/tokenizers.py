"""Text to token ids and back.

`bytes` needs nothing: an id is a byte of UTF-8. `ids` is no tokenizer: a text is numbers. `tokenizers` reads a
`tokenizer.json` that the bundle carries, and needs the package of that name when text is first handed over.
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
from specs.bundle import Manifest
from specs.bundle.files import resolve_inside, verify_files
from specs.errors import BundleError, InputError, MissingDependency, name_nearest

_BYTE_VALUES = 256
_LONGEST_ID = 10  # digits


class Tokenizer(ABC):
    """Text <-> ids."""

    @abstractmethod
    def encode(self, text: str, *, longest: int | None = None) -> list[int]:
        """Ids of `text`, without padding; more than `longest` are cut, but for those that begin and end every text."""

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text that says its own beginning and end, as a chat template's does."""
        return self.encode(text)

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

    def encode(self, text: str, *, longest: int | None = None) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))[:longest]

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
    """A Hugging Face `tokenizer.json`, through the `tokenizers` package.

    Args:
        vocab_size: how many ids the model knows; None where the bundle does not say. A text that holds a token behind
            them is an InputError.
    """

    def __init__(self, path: Path, *, vocab_size: int | None = None) -> None:
        self._path, self._vocab_size = path, vocab_size
        self._cut_side = "right"

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
            tokenizer = module.Tokenizer.from_file(str(self._path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # plain Exception, and for a panic of its Rust a BaseException
            raise BundleError(
                "the tokenizer cannot be read",
                where=str(self._path),
                got=str(error),
                fix="pip install --upgrade tokenizers, or copy the bundle again",
            ) from error
        self._cut_side = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.no_truncation()  # a file may remember how its last batch was cut and padded
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str, *, longest: int | None = None) -> list[int]:
        if longest is not None:
            tokenizer = self._tokenizer  # opened first: it says which end is cut
            tokenizer.enable_truncation(longest, direction=self._cut_side)
        try:
            return self._find_ids(text)
        finally:
            self._tokenizer.no_truncation()

    def encode_whole(self, text: str) -> list[int]:
        return self._find_ids(text, add_special_tokens=False)

    def _find_ids(self, text: str, **options: bool) -> list[int]:
        tokenizer = self._tokenizer  # what hinders opening it has words of its own
        try:
            found = [int(token) for token in tokenizer.encode(text, **options).ids]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # plain Exception, and for a panic of its Rust a BaseException
            raise BundleError(
                "the tokenizer has no ids for this text",
                where=str(self._path),
                got=str(error)[:160],
                fix="change the text; or mend the checkpoint's tokenizer.json, and export again",
            ) from error
        if self._vocab_size is not None:
            require_known_ids(found, self._vocab_size)
        return found

    def decode_words(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """What has been shown stays: bytes that turn out to be no UTF-8 are written otherwise by `decode_words`."""
        seen: list[int] = []
        shown = ""
        for token in ids:
            seen.append(token)
            text = self.decode_words(seen)
            if not text.endswith("\ufffd"):  # a character may need more than one token
                yield text[len(shown) :]
                shown = text
        yield self.decode_words(seen)[len(shown) :]


@final
class IdsTokenizer(Tokenizer):
    """No tokenizer at all: a text is its ids, written as numbers."""

    def encode(self, text: str, *, longest: int | None = None) -> list[int]:
        words = text.split()
        if not all(word.isascii() and word.isdigit() and len(word) < _LONGEST_ID for word in words):
            raise InputError(
                "this bundle has no tokenizer, and the text is no list of token ids",
                got=repr(text)[:80],
                allowed='ids with blanks between them: "12 7 99"',
                fix="tokenise the text, or export from a checkpoint's folder that has its tokenizer.json."
                " With only a tokenizer.model, transformers and sentencepiece make one:"
                " python -c \"import transformers as t; t.AutoTokenizer.from_pretrained('.').save_pretrained('.')\"",
            )
        return [int(word) for word in words][:longest]

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        for index, token in enumerate(ids):
            yield f" {token}" if index else str(token)


def require_known_ids(token_ids: Iterable[int], vocab_size: int) -> None:
    """Raises InputError for an id that a model of `vocab_size` tokens does not have."""
    for token in token_ids:
        if not 0 <= token < vocab_size:
            raise InputError(
                "a token id is outside the vocabulary",
                got=str(token),
                allowed=f"0..{vocab_size - 1}",
                fix="encode the text with this bundle's own tokenizer",
            )


def list_end_tokens(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that `pipeline.tokenizer` says end a text: a list, or one of older bundles."""
    ends = config.get("end_tokens", [config.get("end_of_text")])
    return tuple(end for end in ends if type(end) is int) if isinstance(ends, list) else ()


def make_tokenizer(folder: Path, manifest: Manifest, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `pipeline.tokenizer` describes; its file is verified here and read on first use."""
    kind = take_field(config, "kind", str, at="pipeline.tokenizer")
    if kind == "bytes":
        return BytesTokenizer()
    if kind == "ids":
        return IdsTokenizer()
    if kind == "tokenizers":
        file = take_field(config, "file", str, "assets/tokenizer.json", at="pipeline.tokenizer")
        verify_files(folder, manifest, (file,))
        size = config.get("vocab_size")
        return FileTokenizer(resolve_inside(folder, file), vocab_size=size if type(size) is int else None)
    raise BundleError(
        f"unknown tokenizer kind '{kind}'",
        where=str(folder),
        allowed=name_nearest(kind, ("bytes", "ids", "tokenizers")),
        fix="export the bundle again",
    )
