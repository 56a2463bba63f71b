"""`merges.txt`: one pair of a byte-pair encoding a line, the earliest merge first."""

from __future__ import annotations

from pathlib import Path

from specs.errors import CheckpointError


def read_merges(path: Path) -> list[str]:
    """The pairs, each with one blank between.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "the tokenizer's merges cannot be read",
            where=str(path),
            got=str(getattr(error, "strerror", None) or error),
            fix="copy or download the checkpoint again",
        ) from None
    return [line for line in lines if line.count(" ") == 1 and not line.startswith("#version")]
