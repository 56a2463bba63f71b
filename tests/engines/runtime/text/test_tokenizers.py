"""A tokenizer's file: a stream of tokens shows characters, and no piece of one."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from engines.runtime.text.tokenizers import FileTokenizer

TEXT = "aü€ 𝄞b"


def make_byte_tokenizer(folder: Path) -> FileTokenizer:
    """A token a byte, as GPT-2's vocabulary begins."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={one: index for index, one in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    return FileTokenizer(folder / "tokenizer.json")


def test_a_character_of_several_tokens_comes_whole(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(tmp_path)
    ids = tokenizer.encode(TEXT)
    assert len(ids) == len(TEXT.encode())
    pieces = [piece for piece in tokenizer.decode_stream(ids) if piece]
    assert pieces == list(TEXT)


def test_a_character_that_is_never_completed_is_shown_as_such(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(tmp_path)
    ids = tokenizer.encode("aü")[:-1]
    assert "".join(tokenizer.decode_stream(ids)) == "a\ufffd"
