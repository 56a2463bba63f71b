"""Tokens that only tokenizer_config.json and its neighbours name: a bundle's ids equal AutoTokenizer's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from engines.runtime.text.tokenizers import FileTokenizer
from exporters.checkpoints.tokenizers import added, flags
from exporters.checkpoints.tokenizers.assets import write_tokenizer
from specs.errors import CheckpointError, InputError
from tests.checkpoints.test_decoder_text import CORPUS, save_fast, train_bytes, train_pieces

TEXTS = (
    "the quick <|x|> fox",
    "a[NEW]b [NEW] <|x|>!<|x|>",
    "hello  <image>  hello[MASK] </s><s>",
    "<|x|>über [NEW]\n\n12 it's <mask> don't",
    "no token at all, but a text that is cut",
)


def spell(content: str, **flags: bool) -> dict[str, Any]:
    """A token as tokenizer_config.json describes one."""
    usual = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"__type": "AddedToken", "content": content, **usual, **flags}


def make_generic(folder: Path) -> None:
    save_fast(train_bytes(), folder)


def make_pieces(folder: Path) -> None:
    save_fast(train_pieces(), folder)


def make_bert(folder: Path) -> None:
    hf.BertTokenizer(vocab=_train_words().get_vocab()).save_pretrained(folder)


def make_bytes(kind: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        data = json.loads(train_bytes().to_str())["model"]
        kind(vocab=data["vocab"], merges=[tuple(merge) for merge in data["merges"]]).save_pretrained(folder)

    return make


def make_unigram(kind: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
        kind(vocab=[tuple(piece) for piece in vocabulary]).save_pretrained(folder)

    return make


def _train_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "generic": ("llama", make_generic),
    "pieces": ("gemma", make_pieces),
    "BERT": ("bert", make_bert),
    "GPT-2": ("gpt2", make_bytes(hf.GPT2Tokenizer)),
    "Qwen 2": ("qwen2", make_bytes(hf.Qwen2Tokenizer)),
    "NeoX": ("gpt_neox", make_bytes(hf.GPTNeoXTokenizer)),
    "XLM-R": ("xlm-roberta", make_unigram(hf.XLMRobertaTokenizer)),
    "T5": ("t5", make_unigram(hf.T5Tokenizer)),
}
EDITS: dict[str, dict[str, Any]] = {
    "extra": {"extra_special_tokens": ["<|x|>", spell("[NEW]", lstrip=True, special=False), "hello"]},
    "older name": {"additional_special_tokens": ["<|x|>", "hello"]},
    "named": {"extra_special_tokens": {"image_token": "<image>"}, "video_token": "<|x|>"},
    "begin and end": {"bos_token": "<|x|>", "eos_token": spell("[NEW]", rstrip=True)},
    "decoder": {"added_tokens_decoder": {"600": spell("<|x|>"), "601": spell("hello", normalized=True)}},
    "left": {"truncation_side": "left", "padding_side": "left", "clean_up_tokenization_spaces": True},
}


def edit(folder: Path, model: str, changes: Mapping[str, Any]) -> None:
    """A folder whose config.json names the model, and whose tokenizer_config.json was written to."""
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), **changes}
    if given := changes.get("added_tokens_decoder"):  # beside what the file has, as the library used to write it
        stored = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        known = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in stored}
        new = [{key: value for key, value in token.items() if key != "__type"} for token in given.values()]
        first = hf.AutoTokenizer.from_pretrained(folder).vocab_size + 400
        config["added_tokens_decoder"] = known | {str(first + place): token for place, token in enumerate(new)}
    path.write_text(json.dumps(config))


def encode(source: Path, asset: Path) -> list[list[int]]:
    """Whole texts, then cut ones."""
    write_tokenizer(source, asset)
    ours = FileTokenizer(asset)
    return [ours.encode(text) for text in TEXTS] + [ours.encode(text, longest=5) for text in TEXTS]


def encode_theirs(folder: Path) -> list[list[int]]:
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    whole = [theirs(text)["input_ids"] for text in TEXTS]
    return whole + [theirs(text, truncation=True, max_length=5)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("name", MAKERS)
def test_ids_equal_the_librarys(name: str, tmp_path: Path) -> None:
    model, make = MAKERS[name]
    for index, (what, changes) in enumerate(EDITS.items()):
        folder = tmp_path / str(index)
        make(folder)
        whole = (folder / "tokenizer.json").read_bytes()
        plain = encode(folder / "tokenizer.json", tmp_path / "plain.json")
        edit(folder, model, changes)
        found = encode(folder / "tokenizer.json", tmp_path / "asset.json")
        assert found == encode_theirs(folder), what
        if (name, what) != ("T5", "older name"):  # its own names for blanks come before the older key
            assert found != plain, f"{what} changes nothing, and would prove nothing"
        assert (folder / "tokenizer.json").read_bytes() == whole


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Qwen 2"])
def test_vocabularies_without_a_tokenizer_json(name: str, tmp_path: Path) -> None:
    model, make = MAKERS[name]
    for index, what in enumerate(("extra", "named", "begin and end")):
        folder = tmp_path / str(index)
        make(folder)
        data = json.loads((folder / "tokenizer.json").read_text())["model"]
        edit(folder, model, EDITS[what])
        (folder / "added_tokens.json").write_text(json.dumps({"[NEW]": len(data["vocab"])}))
        (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "hello"}}))
        (folder / "tokenizer.json").unlink()
        if name == "BERT":
            (folder / "vocab.txt").write_text(
                "".join(f"{word}\n" for word in sorted(data["vocab"], key=data["vocab"].get))
            )
        else:
            (folder / "vocab.json").write_text(json.dumps(data["vocab"]))
            pairs = (merge if isinstance(merge, str) else " ".join(merge) for merge in data["merges"])
            (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs))
        source = folder / ("vocab.txt" if name == "BERT" else "vocab.json")
        assert encode(source, tmp_path / "asset.json") == encode_theirs(folder), what


def test_a_token_that_the_model_has_no_row_for(tmp_path: Path) -> None:
    """The library's model fails too; a graph on a GPU would read what lies behind its table."""
    make_generic(tmp_path / "model")
    edit(tmp_path / "model", "llama", EDITS["extra"])
    write_tokenizer(tmp_path / "model" / "tokenizer.json", tmp_path / "asset.json")
    ours = FileTokenizer(tmp_path / "asset.json", vocab_size=400)
    assert ours.encode("the fox") == hf.AutoTokenizer.from_pretrained(tmp_path / "model")("the fox")["input_ids"]
    for encode_text in (ours.encode, ours.encode_whole):
        with pytest.raises(InputError, match="a token id is outside the vocabulary"):
            encode_text("the <|x|> fox")


def test_files_that_agree_stay_byte_for_byte(tmp_path: Path) -> None:
    for name, (model, make) in MAKERS.items():
        folder = tmp_path / name
        make(folder)
        edit(folder, model, {"extra_special_tokens": []} if name == "generic" else {})
        write_tokenizer(folder / "tokenizer.json", tmp_path / "asset.json")
        assert (tmp_path / "asset.json").read_bytes() == (folder / "tokenizer.json").read_bytes(), name


def test_special_tokens_that_are_read_as_text_are_refused(tmp_path: Path) -> None:
    make_generic(tmp_path)
    edit(tmp_path, "llama", {"split_special_tokens": True})
    with pytest.raises(CheckpointError, match="'split_special_tokens' of tokenizer_config.json is not implemented"):
        write_tokenizer(tmp_path / "tokenizer.json", tmp_path / "asset.json")


@pytest.mark.parametrize("mutant", ["nothing added", "marks of the file", "the right side", "flags of the first"])
def test_mutants_are_noticed(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, what = {
        "nothing added": ("generic", "extra"),
        "marks of the file": ("XLM-R", "begin and end"),
        "the right side": ("BERT", "left"),
        "flags of the first": ("generic", "begin and end"),
    }[mutant]
    model, make = MAKERS[name]
    make(tmp_path / "model")
    edit(tmp_path / "model", model, EDITS[what])
    source = tmp_path / "model" / "tokenizer.json"
    assert encode(source, tmp_path / "asset.json") == encode_theirs(tmp_path / "model")
    if mutant == "nothing added":
        monkeypatch.setattr(flags, "follow_added", lambda *_: False)
    elif mutant == "marks of the file":
        monkeypatch.setattr(added, "_follow_marks", lambda *_: False)
    elif mutant == "the right side":
        monkeypatch.setattr(flags, "_set_side", lambda *_: False)
    else:
        keep = added._fill
        monkeypatch.setattr(added, "_fill", lambda token, **_: keep({"content": token["content"]}, special=True))
    assert encode(source, tmp_path / "asset.json") != encode_theirs(tmp_path / "model")
