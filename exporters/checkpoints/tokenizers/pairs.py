"""The two files of a byte-pair encoding.

vocab.json    token -> id
merges.txt    one pair of tokens a line, the earliest merge first
"""

from __future__ import annotations

from pathlib import Path

from exporters.checkpoints.files.config import read_config
from specs.errors import CheckpointError

_LARGEST_ID = (1 << 32) - 1  # as the tokenizers library stores it


def read_ids(path: Path) -> dict[str, int]:
    """token -> id, of a vocab.json.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    ids = dict(read_config(path).data)
    bad = [token for token, number in ids.items() if type(number) is not int or not 0 <= number <= _LARGEST_ID]
    if bad:
        raise CheckpointError(
            f"{path.name} does not map tokens to ids",
            where=str(path),
            got=f"{bad[0]!r}: {ids[bad[0]]!r}"[:120],
            allowed=f"ids of 0 to {_LARGEST_ID}",
            fix="copy or download the checkpoint again",
        )
    if len(set(ids.values())) < len(ids):
        raise CheckpointError(
            f"two tokens of {path.name} have one id",
            where=str(path),
            got=f"{len(ids)} tokens, {len(set(ids.values()))} ids",
            fix="copy or download the checkpoint again",
        )
    return ids


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
