"""Text to the fixed number of token ids that a text tower reads: CLIP's 77 and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field
from engines.runtime.text.tokenizers import make_tokenizer
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_LONGEST = 1 << 20  # tokens; a manifest may say any number


@final
class ContextTokenizer:
    """Ids, one end-of-text id, and padding.

    An end in the middle of a text stays: it is what the text says, and the libraries' tokenizers keep it too.

    Args:
        config: `pipeline.tokenizer`: what `make_tokenizer` takes, `context_length`, `end_of_text`, and `pad_token` (0).
            Without `end_of_text` the ids are as they come: the tokenizer ends a text itself, if anything does.
    """

    def __init__(self, folder: Path, manifest: Manifest, config: Mapping[str, Any]) -> None:
        self.tokenizer = make_tokenizer(folder, manifest, config)
        self.context_length = take_field(config, "context_length", int, at="pipeline.tokenizer", most=_LONGEST)
        has_end = "end_of_text" in config
        self.end_of_text = take_field(config, "end_of_text", int, at="pipeline.tokenizer", least=0) if has_end else None
        self.pad_token = take_field(config, "pad_token", int, 0, at="pipeline.tokenizer", least=0)

    def encode(self, text: str) -> Array:
        """int64 [context_length]; InputError as `encode_counted`."""
        return self.encode_counted(text)[0]

    def encode_counted(self, text: str) -> tuple[Array, int]:
        """int64 [context_length], and how many of these ids are the text's own.

        Raises:
            InputError: the text has more tokens than fit.
        """
        ids = self.tokenizer.encode(text)
        if self.end_of_text is not None:
            while ids and ids[-1] == self.end_of_text:  # the tokenizer may write one itself
                ids.pop()
            ids.append(self.end_of_text)
        if len(ids) > self.context_length:
            raise InputError(
                "the text has too many tokens",
                got=f"{len(ids) - (self.end_of_text is not None)} in {text[:40]!r}",
                allowed=f"{self.context_length - 1} and the end of text"
                if self.end_of_text is not None
                else f"{self.context_length}",
                fix="shorten it",
            )
        row = np.full(self.context_length, self.pad_token, np.int64)
        row[: len(ids)] = ids
        return row, len(ids)
