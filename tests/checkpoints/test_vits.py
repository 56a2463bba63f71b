"""VITS against transformers: every graph on padded rows, whole texts through the host loop, the tokenizer, `run`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from engines.runtime import load
from engines.runtime.media.sound import read_wav
from engines.runtime.pipelines import TextToSpeech
from engines.runtime.text.characters import CharacterTokenizer
from exporters.checkpoints import open_checkpoint
from specs.errors import CheckpointError, InputError, MetagenError, SpecError, WeightsError
from specs.graphs import count_parameters
from specs.handlers import GraphModule, get_handler
from specs.models.audio import vits as ours
from specs.parsing.parse import parse_spec
from specs.sources import ZOO
from tests.checkpoints.compare import compare, enliven, export, open_portable
from tests.checkpoints.speech import Run, build, open_loop, run_onnx, run_torch
from tests.checkpoints.support import edit_config
from tests.checkpoints.tiny_vits import (
    CASES,
    TEXT,
    make_model,
    make_rows,
    run_library,
    save,
    speak,
)

FAMILY = "VITS"


def check(case: str, stage: str, model: Any, graphs: Mapping[str, GraphModule], runs: Mapping[str, Run]) -> None:
    """Every output of every graph."""
    rows = make_rows(model.config)
    if not model.config.use_stochastic_duration_prediction:
        del rows["durations"]["noise"]
    fp32, fp64 = run_library(model, rows), run_library(copy.deepcopy(model).double(), rows)
    for name, graph in graphs.items():
        for tensor, found in zip(graph.outputs, runs[name](rows[name]), strict=True):
            compare(FAMILY, case, stage, tensor.name, found, fp32[tensor.name], fp64[tensor.name])


def check_loop(case: str, stage: str, model: Any, loop: Any, *, speaker: int = 0) -> None:
    """A text to samples, with the noise that the library is given."""
    random = np.random.default_rng(7)
    found = loop.synthesise_tokens(TEXT, speaker=speaker, random=random)
    fp32, fp64 = (speak(one, TEXT, speaker, 7) for one in (model, copy.deepcopy(model).double()))
    compare(FAMILY, case, stage, "whole text", found, fp32, fp64)
    assert len(found) > 20


@pytest.mark.parametrize("name", CASES)
def test_torch_equals_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    spec, graphs = build(save(model, tmp_path / "model"))
    counted = {graph.component: sum(p.numel() for p in graph.module.parameters()) for graph in graphs.values()}
    assert counted == count_parameters(spec)
    runs = {part: run_torch(graph) for part, graph in graphs.items()}
    check(name, "torch", model, graphs, runs)
    loop = open_loop(spec, graphs, runs, tmp_path)
    check_loop(name, "torch", model, loop, speaker=2 if "speakers" in name else 0)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A bundle, its checkpoint in bfloat16 and shards with a weight-normed decoder, and the library's model of it."""
    model = make_model("stochastic, speakers", sampling_rate=8000, prior_encoder_num_flows=1)
    model.decoder.apply_weight_norm()
    enliven(model.decoder, seed=1)
    model = model.to(torch.bfloat16)
    folder = tmp_path_factory.mktemp("vits") / "voice"
    save(model, folder, tokenizer={"phonemize": False}, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    bundle = export(folder, folder.with_suffix(".bundle"), targets=("cpu",), precisions=("fp32",))
    return bundle, folder, model.float()


def test_onnx_equals_transformers(voice: tuple[Path, Path, Any], tmp_path: Path) -> None:
    bundle, folder, model = voice
    spec, graphs = build(folder)
    portable = open_portable(bundle)

    def run_onnx(name: str) -> Run:
        outputs = [tensor.name for tensor in graphs[name].outputs]
        return lambda feed: [portable[name](feed)[output] for output in outputs]

    runs = {name: run_onnx(name) for name in graphs}
    check("bf16, shards", "onnx", model, graphs, runs)
    check_loop("bf16, shards", "onnx", model, open_loop(spec, graphs, runs, tmp_path), speaker=1)


def test_one_layer_that_hears_the_speaker_is_a_graph(tmp_path: Path) -> None:
    """Its shifts are one tensor: cut in one, they were a list of tensors that ONNX Runtime does not read."""
    model = make_model("plain, speakers", prior_encoder_num_wavenet_layers=1)
    spec, graphs = build(save(model, tmp_path / "model"))
    flow = {"flow": graphs["flow"]}
    check("one layer", "onnx", model, flow, {"flow": run_onnx(spec, graphs["flow"], tmp_path)})


def test_weight_norm_as_it_was_spelled_before(tmp_path: Path) -> None:
    model = make_model("plain, speakers")
    folder = save(model, tmp_path / "model")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

    def spell(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "parametrizations" in name]:
            leaf = name[name.index("parametrizations") :]
            tensors[name.replace(leaf, old[leaf])] = tensors.pop(name)

    change_tensors(folder, spell)
    _, graphs = build(folder)
    check("older spelling", "torch", model, graphs, {part: run_torch(graph) for part, graph in graphs.items()})


def test_what_is_not_read_is_explained(tmp_path: Path) -> None:
    unused = open_checkpoint(save(make_model("one flow"), tmp_path / "model")).unused
    assert set(unused.values()) == {"used in training only", "a condition on the speaker, in a model of one"}
    assert "duration_predictor.flows.1.conv_pre.weight" in unused


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"phonemize": False}, ["Hello, World 12!", "  it's  a-b ", "<UNK> x"]),
        ({"phonemize": False, "add_blank": False, "language": "ron"}, ["\u021bar\u0103", "a\u0163"]),
        ({"phonemize": False, "normalize": False}, ["abc", "xyz ?"]),
        ({"phonemize": False, "is_uroman": True}, ["Hallo", "it's"]),
        ({"phonemize": False, "pad_token": "k"}, ["Kick the bookkeeper's book", "ok", "k"]),
        ({"phonemize": False, "normalize": False, "unk_token": "'"}, ["se\u00f1or?", "it's <unk>"]),
    ],
)
def test_ids_equal_the_librarys(options: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    folder = save(make_model("plain"), tmp_path / "model", tokenizer=options)
    tokenizer = hf.VitsTokenizer.from_pretrained(folder)
    spec, graphs = build(folder)
    loop = open_loop(spec, graphs, {part: run_torch(graph) for part, graph in graphs.items()}, tmp_path)
    for text in texts:
        assert loop.tokenizer.encode(text) == tokenizer(text)["input_ids"], text
    for text in ["", "?!"] if options.get("normalize", True) else [""]:
        with pytest.raises(InputError, match="nothing in this text can be spoken"):
            loop.tokenizer.encode(text)
    if options.get("is_uroman"):
        with pytest.raises(InputError, match="trained on text in Latin letters"):
            loop.tokenizer.encode("\u0434\u0430")


@pytest.mark.parametrize("mutant", [{"special_tokens": []}, {"unknown": "<unk>"}])
def test_ids_without_special_tokens_would_be_others(mutant: dict[str, Any], tmp_path: Path) -> None:
    options = {"phonemize": False, "normalize": False, "pad_token": "k", "unk_token": "'"}
    folder = save(make_model("plain"), tmp_path / "model", tokenizer=options)
    spec = open_checkpoint(folder).spec
    described = get_handler(spec).describe_pipeline(spec)["tokenizer"]
    wanted = hf.VitsTokenizer.from_pretrained(folder)("?look")["input_ids"]
    assert CharacterTokenizer(described).encode("?look") == wanted
    assert CharacterTokenizer({**described, **mutant}).encode("?look") != wanted


def test_a_voice_of_phonemes_takes_ids(tmp_path: Path) -> None:
    spec, graphs = build(save(make_model("plain"), tmp_path / "model", tokenizer={"phonemize": True}))
    loop = open_loop(spec, graphs, {part: run_torch(graph) for part, graph in graphs.items()}, tmp_path)
    assert isinstance(loop, TextToSpeech)
    assert loop.tokenizer.encode("3 0 7") == [3, 0, 7]
    with pytest.raises(InputError, match="this bundle has no tokenizer"):
        loop.synthesise(["hello"])


def test_run_writes_speech(voice: tuple[Path, Path, Any], tmp_path: Path, metagen: Callable[..., Any]) -> None:
    bundle, folder, model = voice
    done = metagen("run", bundle, "--prompt", "Hello there", "-o", tmp_path / "hello.wav")
    assert done.returncode == 0, done.stderr
    samples, rate = read_wav(tmp_path / "hello.wav")
    assert rate == 8000 and np.abs(samples).max() > 0.01
    ids = hf.VitsTokenizer.from_pretrained(folder)("Hello there")["input_ids"]
    with load(bundle, precision="fp32") as session:
        pipeline = session.pipeline
        assert isinstance(pipeline, TextToSpeech)
        (spoken,) = pipeline.synthesise(["Hello there"], speaker=1, seed=5)
        np.testing.assert_allclose(spoken, speak(model, ids, 1, 5).numpy(), atol=2e-5)
        slow = pipeline.synthesise(["Hello there"], speaking_rate=0.5)[0]
        assert len(slow) > 1.5 * len(pipeline.synthesise(["Hello there"])[0])
        with pytest.raises(InputError, match="there is no such speaker"):
            pipeline.synthesise(["a"], speaker=3)
        with pytest.raises(InputError, match="spoken for longer than the graphs take"):
            pipeline.synthesise(["a"], speaking_rate=1e-6)
        with pytest.raises(InputError, match="a text is empty or too long"):
            pipeline.synthesise(["a" * 999])


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


BAD: dict[str, tuple[Callable[[Path], object], type[MetagenError], str]] = {
    "missing": (
        lambda f: change_tensors(f, lambda t: t.pop("flow.flows.1.conv_post.bias")),
        WeightsError,
        "the checkpoint lacks the tensor 'flow.flows.1.conv_post.bias'",
    ),
    "half-a-norm": (
        lambda f: change_tensors(
            f, lambda t: t.pop("flow.flows.0.wavenet.in_layers.0.parametrizations.weight.original0")
        ),
        WeightsError,
        "the checkpoint lacks the tensor 'flow.flows.0.wavenet.in_layers.0.parametrizations.weight.original0'",
    ),
    "shape": (lambda f: edit_config(f, window_size=3), WeightsError, "cannot be made of tensors of these shapes"),
    "extra": (
        lambda f: edit_config(f, prior_encoder_num_flows=1),
        WeightsError,
        "has no place in the model that its config describes",
    ),
    "activation": (lambda f: edit_config(f, hidden_act="mish"), CheckpointError, "'hidden_act' is 'mish'"),
    "halves": (
        lambda f: edit_config(f, depth_separable_channels=4),
        CheckpointError,
        "'depth_separable_channels' is 4",
    ),
    "even": (lambda f: edit_config(f, wavenet_kernel_size=4), CheckpointError, "an odd one keeps the length"),
    "upsampling": (
        lambda f: edit_config(f, upsample_kernel_sizes=[8, 4]),
        CheckpointError,
        "does not make exactly 3 samples of one",
    ),
    "speakers": (lambda f: edit_config(f, num_speakers=4), CheckpointError, "nothing that tells them apart"),
    "vocabulary": (
        lambda f: [
            (f / "vocab.json").write_text('{"a": 0, "b": 900}'),
            (f / "tokenizer_config.json").write_text('{"phonemize": false}'),
        ],
        CheckpointError,
        "vocab.json does not map characters to ids of this model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_is_refused_in_words(case: str, tmp_path: Path) -> None:
    spoil, kind, words = BAD[case]
    folder = save(make_model("stochastic"), tmp_path / "model")
    spoil(folder)
    with pytest.raises(kind) as caught:
        build(folder)
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("flow: {kind: audio.vits_flow}", "flow: {kind: audio.vits_flow, latent_size: 64}", "flow.latent_size 64 does"),
        ("kind: audio.hifigan}", "kind: audio.hifigan, speaker_size: 8}", "vocoder.speaker_size 8 does not go with"),
        (
            "vocab_size: 258}",
            "vocab_size: 258, num_speakers: 2}",
            "num_speakers above 1 and speaker_size",
        ),
        ("vocab_size: 258}", "vocab_size: 258, num_heads: 5}", "num_heads 5 does not divide hidden_size 192"),
        ("kind: audio.vits_durations}", "kind: audio.vits_durations, kernel_size: 4}", "an odd one keeps the length"),
        ("kind: audio.hifigan}", "kind: audio.hifigan, upsample_rates: [8, 8]}", "need the same number of entries"),
    ],
)
def test_parts_must_agree(old: str, new: str, words: str) -> None:
    text = (ZOO / "audio_speech.yaml").read_text().split("variants:")[0]
    assert text.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace(old, new), source="my.yaml")
    assert words in str(caught.value), str(caught.value)


def drop_the_mask(lengths: Tensor, like: Tensor) -> Tensor:
    return torch.ones(like.shape[0], 1, like.shape[-1], dtype=like.dtype)


def turn_distances(modules: Mapping[str, Any], _: pytest.MonkeyPatch) -> None:
    attention = modules["text_encoder"].layers[0].attention
    attention.distance_keys = nn.Parameter(attention.distance_keys.detach().flip(0))


def approximate(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


APPROXIMATE = SimpleNamespace(gelu=approximate, pad=functional.pad)
MUTANTS: dict[str, Callable[[Mapping[str, nn.Module], pytest.MonkeyPatch], object]] = {
    "eps": lambda m, _: setattr(m["text_encoder"].layers[0].mlp_norm, "eps", 1e-3),
    "distances the other way round": turn_distances,
    "bound": lambda m, _: setattr(m["durations"].flows[0], "bound", 4.9),
    "flows in order": lambda m, _: setattr(m["durations"], "flows", nn.ModuleList(reversed(m["durations"].flows))),
    "couplings in order": lambda m, _: setattr(m["flow"], "couplings", nn.ModuleList(reversed(m["flow"].couplings))),
    "slope": lambda m, _: setattr(m["vocoder"].stages[1], "slope", 0.11),
    "mask": lambda _, patch: patch.setattr(ours, "mask_beyond", drop_the_mask),
    "tanh GELU": lambda _, patch: patch.setattr(
        ours, "functional", SimpleNamespace(gelu=approximate, pad=functional.pad)
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_comparison_notices(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("stochastic")
    _, graphs = build(save(model, tmp_path / "model"))
    MUTANTS[name]({part: graph.module for part, graph in graphs.items()}, monkeypatch)
    with pytest.raises(AssertionError, match="more than"):
        check("mutant", "torch", model, graphs, {part: run_torch(graph) for part, graph in graphs.items()})
