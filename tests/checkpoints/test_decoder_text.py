"""Text in, text out: ids and words as transformers' own tokenizers have them, and all the way to `run`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engines.runtime import load
from engines.runtime.text.chat import render_chat
from engines.runtime.text.tokenizers import FileTokenizer, IdsTokenizer
from exporters.checkpoints.base import Folder
from exporters.checkpoints.tokenizers.assets import find_tokenizer, write_tokenizer
from exporters.checkpoints.tokenizers.bert import describe_bert_tokenizer
from exporters.checkpoints.tokenizers.chat import describe_chat
from specs.errors import BundleError, InputError, MetagenError
from tests.checkpoints.compare import enliven, export

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1984, they'll say; we'd rather not!",
    "Wörter mit Umlauten: größer, älter, über. Zahlen wie 3,14 und 42.",
    "def main():\n    return {'a': [1, 2, 3]}\n\n\tprint(\"done\")",
    "naïve café, Ångström, 日本語のテキスト, emoji 🙂🙃",
] * 8
TEXTS = [
    "The lazy fox is 42 years old, isn't it?",
    "  two  leading blanks, trailing   ",
    "größer als 日本 🙂 \n\n new line\tand tab",
    "unseen: ﷽ ñ Ω <|endoftext|> </s> in the middle",
    "é",  # two code points
    "a <mask> b<mask>",
    "",
]


#: As published ones are: what they use of Jinja, and of what transformers gives them beside it.
CHATS = {
    "turns": "{% for m in messages %}{{ bos_token + '[' + m['role'] + '] ' + m['content'] | trim + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[a]' }}{% endif %}",
    "blocks, system, checks": """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
{%- else %}
    {%- set system = 'Be kind.' %}
{%- endif %}
{{ bos_token }}{% for message in messages %}
    {% if message['role'] not in ('user', 'assistant') %}{{ raise_exception('no role') }}{% endif %}
    {% if loop.first %}<<{{ system }}>> {% endif %}
    {{- message.content.strip() }}{{ eos_token }}
    {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}""",
    "date, json, tools, generation": "{{ strftime_now('%Y') }} {{ messages | tojson }} {{ 'none' if not tools }}"
    "{% generation %} é < {{ messages[-1].content | upper }}{% endgeneration %}",
}


def train_bytes() -> Tokenizer:
    """Byte-level, as GPT-2 and Llama 3; a text begins with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    start = tokenizer.token_to_id("<s>")
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)])
    tokenizer.post_processor = template
    return tokenizer


def train_pieces() -> Tokenizer:
    """Pieces with bytes to fall back on, as Llama 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]  # bytes are plain pieces
    tokenizer = Tokenizer.from_str(json.dumps(data))
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer.post_processor = template
    return tokenizer


def save_fast(tokenizer: Tokenizer, folder: Path, **options: Any) -> Any:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" if tokenizer.token_to_id("<unk>") else None}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)
    fast.save_pretrained(folder)
    return hf.AutoTokenizer.from_pretrained(folder)


def take_asset(folder: Path, path: Path) -> FileTokenizer:
    """The tokenizer as the bundle would carry it."""
    source = find_tokenizer(folder)
    assert source is not None
    write_tokenizer(source, path)
    return FileTokenizer(path)


def check_equal(ours: FileTokenizer, theirs: Any) -> None:
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("train", [train_bytes, train_pieces])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_bos_token": False, "add_eos_token": True},
        {"additional_special_tokens": ["<image>"]},
        {"model_max_length": 4, "padding_side": "left"},
    ],
)
def test_tokenizer_json(train: Any, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = save_fast(train(), tmp_path / "model", **options)
    check_equal(take_asset(tmp_path / "model", tmp_path / "asset.json"), theirs)


def test_a_file_that_remembers_padding_and_truncation(tmp_path: Path) -> None:
    tokenizer = train_bytes()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = FileTokenizer(tmp_path / "tokenizer.json").encode(TEXTS[0])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert found == tokenizer.encode(TEXTS[0]).ids


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer"])
@pytest.mark.parametrize(
    "options", [{}, {"add_prefix_space": True}, {"pad_token": "<pad>"}, {"additional_special_tokens": ["<|im_end|>"]}]
)
def test_vocabulary_and_merges(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Folders of before 2020 have no tokenizer.json."""
    train_bytes().model.save(str(tmp_path))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    if name == "RobertaTokenizer":
        vocabulary |= {text: len(vocabulary) + place for place, text in enumerate(("<pad>", "<unk>", "<mask>"))}
    theirs = getattr(hf, name)(
        vocab=vocabulary,
        merges=[tuple(line.split(" ")) for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]],
        **options,
    )
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    check_equal(take_asset(tmp_path, tmp_path / "asset.json"), theirs)
    path = tmp_path / "tokenizer_config.json"
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    described = describe_bert_tokenizer(Folder(tmp_path))
    assert (described is not None) == (name == "RobertaTokenizer"), "another class's files are not RoBERTa's"
    marked: dict[str, Any] = {"add_bos_token": name == "GPT2Tokenizer", "add_eos_token": True}
    if name == "RobertaTokenizer":
        mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
        marked = {"mask_token": {**mask, "__type": "AddedToken"}, "added_tokens_decoder": {}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **marked}))
    check_equal(take_asset(tmp_path, tmp_path / "asset.json"), hf.AutoTokenizer.from_pretrained(tmp_path))


def test_a_folder_without_any(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    assert find_tokenizer(tmp_path) is None
    ids = IdsTokenizer()
    assert ids.encode("12 7  99") == [12, 7, 99]
    assert ids.decode([12, 7]) == "12 7"
    with pytest.raises(InputError, match="this bundle has no tokenizer, and the text is no list of token ids"):
        ids.encode("hello")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A small Llama that knows a few hundred pieces, as a bundle; the library's model and tokenizer."""
    folder = tmp_path_factory.mktemp("llama") / "talker"
    tokenizer = save_fast(train_pieces(), folder, chat_template=CHATS["turns"])
    torch.manual_seed(2)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model: Any = enliven(hf.LlamaForCausalLM(config), seed=2, scale=1.5)
    model.save_pretrained(folder)
    return export(folder, folder.with_suffix(".bundle")), model, tokenizer


def test_a_prompt_goes_on_as_in_transformers(bundle: tuple[Path, Any, Any]) -> None:
    path, model, tokenizer = bundle
    prompts = ["The quick brown", "größer 日本"]
    with load(path) as session:
        ours = session.pipeline.generate(prompts, max_new_tokens=12)
        streamed = "".join(session.pipeline.stream(prompts[0], max_new_tokens=12))
    for prompt, text in zip(prompts, ours, strict=True):
        given = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(**given, max_new_tokens=12, do_sample=False)
        assert text == tokenizer.decode(whole[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert streamed.startswith(ours[0][:9]) and len(streamed) >= len(ours[0]) - 3


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("place", ["file", "key", "names", "old tokens"])
def test_a_chat_template_is_filled_in_as_in_transformers(name: str, place: str, tmp_path: Path) -> None:
    theirs = save_fast(train_pieces(), tmp_path, chat_template=CHATS[name])
    path, config = tmp_path / "chat_template.jinja", tmp_path / "tokenizer_config.json"
    data = json.loads(config.read_text())
    if place != "file":
        given = path.read_text()
        path.unlink()
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": given}]
        data["chat_template"] = named if place == "names" else given
    if place == "old tokens":
        data["bos_token"] = {"content": "<s>", "lstrip": False, "__type": "AddedToken"}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": data.pop("eos_token")}))
        data["auto_map"] = {"AutoTokenizer": ["their_code.TheirTokenizer", None]}  # of a class that is not made
    config.write_text(json.dumps(data))
    described = describe_chat(Folder(tmp_path))
    ours = take_asset(tmp_path, tmp_path / "asset.json")
    for prompt in ("  Hello <b>you</b> & 'me'", "größer 日本 🙂"):
        messages = [{"role": "user", "content": prompt}]
        text = render_chat(described, prompt)
        assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ours.encode_whole(text) == ids


@pytest.mark.parametrize(
    ("template", "kind", "words"),
    [
        ("", InputError, "this bundle has no chat template"),
        ("{{ messages[0]['content'] * 9000000 }}", InputError, "larger than any in a conversation"),
        ("{% for a in range(9999) %}{{ 'hello' * 999 }}{% endfor %}", InputError, "makes too much of this prompt"),
        ("{{ 9**(9**9) }}", InputError, "larger than any in a conversation"),
        (
            "{% set n = namespace(x='a') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            InputError,
            "larger",
        ),
        (
            "{% set n = namespace(x='a') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
            InputError,
            "larger",
        ),
        ("{{ '%2000000000d'|format(1) }}{{ 'a'|center(9999999999) }}", InputError, "larger than any"),
        ("{{ '{:2000000000}'.format(1) }}", InputError, "larger than any"),
        ("{{ 'a'.center(9999999999) }}", InputError, "larger than any"),
        ("{{ '%2000000000d' % 1 }}", InputError, "larger than any"),
        ("{{ 5|dictsort }}", InputError, "has no attribute"),
        ("{{" + "(" * 5000 + "}}", BundleError, "no Jinja that is known here"),
        ("{% for a in messages %}" * 30 + "{% endfor %}" * 30, BundleError, "no Jinja that is known here"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", InputError, "does not take this prompt"),
        ("{{ raise_exception('only a system may speak') }}", InputError, "only a system may speak"),
        ("{% for %}", BundleError, "no Jinja that is known here"),
        ("{{ messages.__class__.__mro__ }}", InputError, "does not take this prompt"),
        ("{{ messages.append(1) }}", InputError, "does not take this prompt"),
        ("{% for a in range(999999999) %}{% endfor %}", InputError, "does not take this prompt"),
    ],
)
def test_a_bad_chat_template(template: str, kind: type[MetagenError], words: str) -> None:
    with pytest.raises(kind) as caught:
        render_chat({"chat_template": template, "special_tokens": {}}, "hello")
    assert words in str(caught.value)


def test_a_chat_template_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that writes nothing is stopped, and what traced before traces on; what the sandbox bounds still works."""
    monkeypatch.setattr("engines.runtime.text.sandbox.LONGEST_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    before = sys.gettrace()
    with pytest.raises(InputError, match="the chat template does not end"):
        render_chat({"chat_template": loop}, "hello")
    assert sys.gettrace() is before
    usual = (
        "{{ 'a' ~ 1 + 2 ~ 'b' * 2 }} {{ 2 ** -1 }} {{ '%3d|{}'|format(7) }} {{ '{:>3}'.format(7 % 4) }} {{ x ~ '' }}"
    )
    assert render_chat({"chat_template": usual}, "hello") == "a12bb 0.5   7|{}   3 "


def test_a_prompt_in_its_chat_template(bundle: tuple[Path, Any, Any]) -> None:
    """The bundle carries the template; without `--chat` a prompt is taken as it is, and that is said."""
    path, model, tokenizer = bundle
    messages = [{"role": "user", "content": "The quick"}]
    given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    whole = model.generate(**given, max_new_tokens=8, do_sample=False)
    with load(path) as session:
        found = session.pipeline.generate(["The quick"], max_new_tokens=8, chat=True)
        assert found != session.pipeline.generate(["The quick"], max_new_tokens=8)
        streamed = "".join(session.pipeline.stream("The quick", chat=True))
    assert found == [tokenizer.decode(whole[0, given["input_ids"].shape[1] :], skip_special_tokens=True)]
    command = [sys.executable, "-m", "metagen_deploy", "run", str(path), "--chat", "--prompt", "The quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, streamed + "\n"), done.stderr
    assert "--chat" not in done.stderr


def test_it_stops_at_any_of_the_end_tokens(bundle: tuple[Path, Any, Any]) -> None:
    path, _, tokenizer = bundle
    with load(path) as session:
        pipeline = session.pipeline
        steps = [step[0] for step in pipeline.stream_tokens([tokenizer("The quick")["input_ids"]], max_new_tokens=12)]
        assert pipeline._end_tokens == (2,)
        pipeline._end_tokens = (448, steps[3])
        again = [step[0] for step in pipeline.stream_tokens([tokenizer("The quick")["input_ids"]], max_new_tokens=12)]
    assert again == steps[: steps.index(steps[3]) + 1]


def test_run_prints_the_text(bundle: tuple[Path, Any, Any]) -> None:
    path, _, _ = bundle
    with load(path) as session:
        text = "".join(session.pipeline.stream("The quick brown"))
    command = [sys.executable, "-m", "metagen_deploy", "run", str(path), "--prompt", "The quick brown"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text + "\n"
    assert "the prompt is taken as it is; --chat puts it into the model's chat template\n" in done.stderr


def test_a_checkpoint_without_tokenizer_takes_ids(bundle: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, _, _ = bundle
    from exporters.checkpoints import read_spec
    from specs.handlers import get_handler

    folder = shutil.copytree(path.with_suffix(""), tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    spec = read_spec(folder)
    assert get_handler(spec).describe_pipeline(spec)["tokenizer"] == {"kind": "ids"}


def make_word_pieces() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "café", "cafe", "日", "日本", "##s", "."]
    return hf.BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def make_bytes(kind: Any) -> Any:
    data = json.loads(train_bytes().to_str())["model"]
    return kind(vocab=data["vocab"], merges=[tuple(merge) for merge in data["merges"]])


FLAGS = {
    "BERT": (make_word_pieces, ("do_lower_case", "strip_accents", "tokenize_chinese_chars")),
    "GPT-2": (lambda: make_bytes(hf.GPT2Tokenizer), ("add_prefix_space",)),
    "Qwen 2": (lambda: make_bytes(hf.Qwen2Tokenizer), ("add_prefix_space",)),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_the_file_does_not_know(name: str, tmp_path: Path) -> None:
    """A tokenizer_config.json that was edited, or lost: the library follows it, and not the tokenizer.json."""
    make, flags = FLAGS[name]
    make().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": {"BERT": "bert"}.get(name, "other")}))
    path, file = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    saved, whole = json.loads(path.read_text()), file.read_bytes()
    texts = [*TEXTS, "The the café 日本 cafés.", " the cafe\u0301"]
    seen = set()
    for flag in flags:
        for value in (True, False, "absent"):
            path.write_text(json.dumps({k: v for k, v in {**saved, flag: value}.items() if v != "absent"}))
            theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
            ours = take_asset(tmp_path, tmp_path / "asset.json")
            found = tuple(tuple(ours.encode(text)) for text in texts)
            assert found == tuple(tuple(theirs(text)["input_ids"]) for text in texts), (flag, value)
            seen.add(found)
    assert len(seen) > len(flags), "flags that change nothing would prove nothing"
    path.write_text(json.dumps({**saved, **dict.fromkeys(flags, False), "tokenizer_class": "PreTrainedTokenizerFast"}))
    take_asset(tmp_path, tmp_path / "asset.json")
    assert (tmp_path / "asset.json").read_bytes() == whole
