"""A tokenizer's file: a stream of tokens shows characters, and no piece of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from engines.runtime.text.tokenizers import FileTokenizer
from specs.errors import BundleError, MissingDependency

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


def test_a_text_that_has_no_ids_is_refused(tmp_path: Path) -> None:
    """A model of whole words without one for the unknown ones."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    tokenizer = FileTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a") == [0]
    for encode in (tokenizer.encode, tokenizer.encode_whole):
        with pytest.raises(BundleError, match="the tokenizer has no ids for this text") as caught:
            encode("b")
        assert caught.value.fix


def test_the_package_is_asked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match="needs the package 'tokenizers'"):
        FileTokenizer(tmp_path / "tokenizer.json").encode("a")
