"""A folder that is no good checkpoint: one clear message each, exit 1, nothing half-written, nothing executed."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.checkpoints import IMPORTERS, open_checkpoint, read_spec
from exporters.checkpoints.base import Folder
from exporters.checkpoints.tokenizers.assets import write_tokenizer
from exporters.checkpoints.tokenizers.chat import describe_chat
from specs.errors import MetagenError

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, in two shards with their index."""
    folder = tmp_path_factory.mktemp("good") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(good, tmp_path / "llama")


def edit_config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        data = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in data.items() if value != "REMOVE"}))

    return spoil


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """All tensors in one file, changed."""

    def spoil(folder: Path) -> None:
        tensors = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
        for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
            path.unlink()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def find_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def truncate(folder: Path) -> None:
    shard = find_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-1000])


def edit_index(change: Callable[[dict[str, str]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        data = json.loads(path.read_text())
        change(data["weight_map"])
        path.write_text(json.dumps(data))

    return spoil


def keep_pickle_only(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))


def save_two_variants(folder: Path) -> None:
    edit_tensors(lambda tensors: None)(folder)
    shutil.copy(folder / "model.safetensors", folder / "model.bf16.safetensors")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def keep_adapter_only(folder: Path) -> None:
    edit_tensors(lambda tensors: None)(folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def remove_weights(folder: Path) -> None:
    keep_pickle_only(folder)
    (folder / "pytorch_model.bin").unlink()


BAD: dict[str, tuple[Spoil, str]] = {
    "truncated-shard": (truncate, "the weights file is truncated, or is not safetensors"),
    "missing-shard": (lambda f: find_shard(f).unlink(), "the index names the shard 'model-00001-of-"),
    "index-leaves-folder": (
        edit_index(lambda m: m.update({"model.norm.weight": "../other.safetensors"})),
        "the index names a shard outside the checkpoint's folder",
    ),
    "index-absolute": (
        edit_index(lambda m: m.update({"model.norm.weight": "/etc/passwd"})),
        "the index names a shard outside the checkpoint's folder",
    ),
    "index-lies": (
        edit_index(lambda m: m.update({"model.other.weight": next(iter(m.values()))})),
        "the index says that 'model.other.weight' is in",
    ),
    "index-no-json": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        "model.safetensors.index.json cannot be read",
    ),
    "pickle-only": (keep_pickle_only, "the checkpoint's weights are pickles, which can run code, and are not read"),
    "two-variants": (save_two_variants, "the checkpoint has its weights in several variants"),
    "adapter-only": (keep_adapter_only, "the checkpoint is an adapter (LoRA and the like) without the model"),
    "no-weights": (remove_weights, "the checkpoint has no weights"),
    "config-no-json": (lambda f: (f / "config.json").write_text("[1"), "config.json cannot be read"),
    "config-a-list": (lambda f: (f / "config.json").write_text("[1]"), "config.json is not a mapping"),
    "config-too-deep": (lambda f: (f / "config.json").write_text("[" * 200_000), "config.json cannot be read"),
    "config-binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json cannot be read"),
    "custom-code": (
        edit_config(auto_map={"AutoModel": "evil.Model"}),
        "this checkpoint asks for code of its own ('auto_map'), which is never run",
    ),
    "unknown-family": (edit_config(model_type="llamma"), "there is no importer for 'llamma' checkpoints"),
    "no-family": (edit_config(model_type="REMOVE"), "the config does not say what model it is of"),
    "size-missing": (edit_config(hidden_size="REMOVE"), "has the wrong shape"),  # the library's default is 4096
    "size-is-text": (
        edit_config(hidden_size="48"),
        "'hidden_size' in the checkpoint's config is not a whole number",
    ),
    "size-is-endless": (
        edit_config(hidden_size=10**18),
        "'hidden_size' in the checkpoint's config is far too large",
    ),
    "tokenizer-cut-off": (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
    "tokenizer-of-another-kind": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": {"type": "Own"}}'),
        "the tokenizer cannot be read",
    ),
    "size-is-negative": (edit_config(hidden_size=-48), "the checkpoint's config contradicts itself: "),
    "size-contradicts-tensors": (edit_config(intermediate_size=96), "has the wrong shape"),
    "vocabulary-contradicts-tensors": (edit_config(vocab_size=301), "has the wrong shape"),
    "more-layers-than-tensors": (
        edit_config(num_hidden_layers=3),
        "the checkpoint lacks the tensor 'model.layers.2.input_layernorm.weight'",
    ),
    "fewer-layers-than-tensors": (
        edit_config(num_hidden_layers=1),
        "has no place in the model that its config describes",
    ),
    "other-activation": (
        edit_config(hidden_act="xielu"),
        "'hidden_act' is 'xielu' in the checkpoint's config, which is not implemented",
    ),
    "missing-tensor": (
        edit_tensors(lambda t: t.pop("model.norm.weight")),
        "the checkpoint lacks the tensor 'model.norm.weight'",
    ),
    "extra-tensor": (
        edit_tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A": torch.ones(2, 2)})),
        "'model.layers.0.self_attn.q_proj.lora_A' has no place in the model",
    ),
    "integer-tensor": (
        edit_tensors(lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)})),
        "has the wrong type",
    ),
    "nan-tensor": (
        edit_tensors(lambda t: t["model.norm.weight"].fill_(float("nan"))),
        "holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_is_refused_in_words(case: str, folder: Path, tmp_path: Path) -> None:
    from metagen_deploy import pipeline
    from specs.progress import ignore_progress

    spoil, words = BAD[case]
    spoil(folder)
    output = tmp_path / "out" / "model.bundle"
    output.parent.mkdir()
    with pytest.raises(MetagenError) as caught:
        pipeline.export(str(folder), output=output, progress=ignore_progress)
    message = str(caught.value)
    assert words in message.splitlines()[0], message
    assert "where:" in message
    assert not list(output.parent.iterdir()), "nothing half-written"


ODD_VALUES: tuple[Any, ...] = (
    None, "x", "", "../x", -1, 0, 10**12, 10**40, 1.5, float("nan"), float("inf"), True, [], [1, "a"], [[1]], {},
    {"a": 1},
)  # fmt: skip


TOGETHER = "the files beside it do not make one"
BAD_TOKENIZERS = {
    "an id that is text": ({"vocab.json": '{"a": "x"}'}, "vocab.json does not map tokens to ids"),
    "an id below 0": ({"vocab.json": '{"a": -1}'}, "vocab.json does not map tokens to ids"),
    "an id that no library stores": ({"vocab.json": '{"a": 4294967296}'}, "vocab.json does not map tokens to ids"),
    "an id twice": ({"vocab.json": '{"a": 0, "b": 0}'}, "two tokens of vocab.json have one id"),
    "merges of unknown tokens": ({"merges.txt": "zz yy"}, "the tokenizer cannot be read"),
    "half of a character": ({"vocab.json": '{"\\ud800": 0}', "merges.txt": ""}, TOGETHER),
    "an added token of no id": ({"added_tokens.json": '{"c": null}'}, TOGETHER),
    "a key that is no id": ({"tokenizer_config.json": '{"added_tokens_decoder": {"x": {"content": "y"}}}'}, TOGETHER),
    "an added token without text": ({"tokenizer_config.json": '{"added_tokens_decoder": {"5": {}}}'}, TOGETHER),
    "an added token that is text": ({"tokenizer_config.json": '{"added_tokens_decoder": {"5": "y"}}'}, TOGETHER),
    "added tokens that are a list": ({"tokenizer_config.json": '{"added_tokens_decoder": [1]}'}, TOGETHER),
}


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_a_tokenizer_that_cannot_be_made_is_refused_before_a_bundle_carries_it(case: str, tmp_path: Path) -> None:
    files, words = BAD_TOKENIZERS[case]
    whole = {"config.json": '{"model_type": "gpt2"}'}
    whole |= {"vocab.json": '{"a": 0, "b": 1, "ab": 2}', "merges.txt": "a b"}
    for name, text in (whole | files).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(MetagenError) as caught:
        write_tokenizer(tmp_path / "vocab.json", tmp_path / "made.json")
    assert words in str(caught.value)
    assert caught.value.fix
    assert not (tmp_path / "made.json").exists()


@pytest.mark.parametrize("names", [[{"name": [1], "template": "x"}], [1, []], [{"name": "tool_use", "template": "x"}]])
def test_a_list_of_chat_templates_without_a_usual_one(names: list[object], tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": names}))
    assert describe_chat(Folder(tmp_path)) == {}


def test_config_with_any_value_for_any_key(folder: Path) -> None:
    """Each key, those of mappings too, with each odd value: a spec, or a refusal that says where."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "quantization_config": {},
    }
    refused = []
    for key in config:
        inner = config[key] if isinstance(config[key], dict) else {}
        for value in ODD_VALUES:
            for changed in ({key: value}, *({key: {**inner, name: value}} for name in inner)):
                path.write_text(json.dumps(config | changed))
                try:
                    open_checkpoint(folder)
                except MetagenError as error:
                    refused.append(error)
    assert len(refused) > 200
    assert all(error.where or error.fix for error in refused)


def test_unknown_family_lists_those_there_are_and_the_way_out(folder: Path) -> None:
    edit_config(model_type="mamba")(folder)
    with pytest.raises(MetagenError) as caught:
        read_spec(folder)
    message = str(caught.value)
    assert all(importer.title in message for importer in IMPORTERS)
    assert "metagen-deploy export MODEL.onnx" in message


def test_folder_without_config_is_no_checkpoint(tmp_path: Path, metagen: Callable[..., Any]) -> None:
    (tmp_path / "empty").mkdir()
    done = metagen("export", "empty", "-o", "x.bundle")
    assert done.returncode == 1
    assert "this folder is no checkpoint: it has neither config.json nor model_index.json" in done.stderr
    assert not (tmp_path / "x.bundle").exists()


def test_every_tensor_is_used_or_named_with_its_reason(good: Path) -> None:
    checkpoint = open_checkpoint(good)
    assert checkpoint.used == 21
    assert checkpoint.unused == {}


def test_each_model_type_has_one_importer() -> None:
    names = [name for importer in IMPORTERS for name in importer.model_types]
    assert len(names) == len(set(names))


def test_spec_of_a_checkpoint_is_checked_against_it(good: Path) -> None:
    spec = read_spec(good)
    decoder = spec.components["decoder"].model_copy(update={"rope_theta": 20000.0})
    other = spec.model_copy(update={"components": {"decoder": decoder}})
    with pytest.raises(MetagenError) as caught:
        open_checkpoint(good, other)
    assert "component 'decoder' differs in rope_theta" in str(caught.value)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "100KB"}], ids=["one file", "shards"])
def test_a_variant_is_found_under_the_librarys_names(good: Path, tmp_path: Path, shards: dict[str, str]) -> None:
    """`save_pretrained(variant="fp16")` writes model.fp16.safetensors, and an index of such shards."""
    model = LlamaForCausalLM.from_pretrained(good)
    model.half().save_pretrained(tmp_path, variant="fp16", **shards)
    assert not (tmp_path / "model.safetensors").exists()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.used == len(model.state_dict())
    name = "decoder.output_norm.weight"
    assert torch.equal(checkpoint.source.read(name), model.state_dict()["model.norm.weight"])


def test_a_checkpoint_is_described_without_torch(folder: Path, environment: dict[str, str]) -> None:
    """`show CHECKPOINT` takes half a second, not two; and a config that is refused is refused before torch is there."""
    code = (
        "import pathlib, sys; from exporters.checkpoints import read_spec; from specs.graphs import list_graphs;"
        "list_graphs(read_spec(pathlib.Path(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
