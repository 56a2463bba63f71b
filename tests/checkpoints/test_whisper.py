"""Whisper against transformers: log-mel in the graph, encoder, prompts, the cache, greedy transcripts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.runtime import load
from engines.runtime.pipelines import SpeechRecognition
from engines.runtime.text.tokenizers import FileTokenizer
from exporters.checkpoints import open_checkpoint
from exporters.checkpoints.tokenizers.assets import write_tokenizer
from specs.errors import CheckpointError, InputError, MetagenError, WeightsError
from specs.graphs import count_parameters
from specs.handlers import GraphModule
from specs.models.audio import whisper as ours
from specs.models.audio.mel import compute_whisper_log
from specs.schema import Spec
from tests.checkpoints.compare import Array, compare, enliven, export, record_tokens
from tests.checkpoints.speech import Run, build, make_voice, open_loop, run_onnx, run_torch, write_wav

FAMILY = "Whisper"
SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "num_mel_bins": 20,
    "d_model": 30,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 52,
    "decoder_layers": 3,
    "decoder_attention_heads": 5,
    "decoder_ffn_dim": 70,
    "max_source_positions": 31,
    "max_target_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "begin_suppress_tokens": [5, 2],
}
#: A vocabulary of three languages and two tasks, as the multilingual models have it.
MULTILINGUAL: dict[str, Any] = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 190, "<|fr|>": 191, "<|de|>": 192},
    "task_to_id": {"transcribe": 195, "translate": 196},
    "no_timestamps_token_id": 199,
    "suppress_tokens": [7, 8, 9, 190, 191, 192, 195, 196, 199],
}
#: Each the config, the generation config, and the samples' seed.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({}, {}),
    "English only": ({"tie_word_embeddings": False}, {"no_timestamps_token_id": 199, "is_multilingual": False}),
    "language detected": ({"num_mel_bins": 128, "max_source_positions": 12}, MULTILINGUAL),
    "forced ids": ({"tie_word_embeddings": False}, {**MULTILINGUAL, "forced_decoder_ids": [[1, None], [2, 195]]}),
    "forced language": ({"activation_function": "relu"}, {**MULTILINGUAL, "forced_decoder_ids": [[1, 191], [2, 196]]}),
    "French": (
        {"encoder_layers": 1, "decoder_layers": 1, "tie_word_embeddings": False, "scale_embedding": True},
        {**MULTILINGUAL, "language": "french", "max_length": 9},
    ),
    "translate": (
        {"num_mel_bins": 80, "activation_function": "gelu_new", "tie_word_embeddings": False},
        {**MULTILINGUAL, "language": "<|de|>", "task": "translate", "eos_token_id": [2, 50, 60]},
    ),
}
ROWS, STEPS = 3, 16


def make_model(name: str, *, scale: float = 2.0) -> Any:
    """The library's model, alive, with a generation config of its own: loading drops half of one made of the config."""
    config, generation = CASES[name]
    torch.manual_seed(0)
    model = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**{**SIZES, **config}))
    for key, value in generation.items():
        setattr(model.generation_config, key, copy.deepcopy(value))
    model.generation_config._from_model_config = False
    return enliven(model, scale=scale, seed=3)


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    hf.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(folder)
    return folder


def count_samples(model: Any) -> int:
    return 2 * 160 * int(model.config.max_source_positions)


def make_features(model: Any, samples: Array) -> tuple[Tensor, Tensor]:
    """The library's log-mel features; and the same in float64, by torch's own transform."""
    extractor = hf.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    length = samples.shape[1]
    fp32 = extractor(list(samples), sampling_rate=16000, max_length=length, return_tensors="pt").input_features
    window = torch.hann_window(400, dtype=torch.float64)
    spectrum = torch.stft(torch.from_numpy(samples).double(), 400, 160, window=window, return_complex=True)
    mel = torch.from_numpy(extractor.mel_filters).double().T @ spectrum[..., :-1].abs().square()
    return fp32, compute_whisper_log(mel)


def check_forward(name: str, stage: str, model: Any, runs: Mapping[str, Run], wide: Any = None) -> None:
    """Encoder states, logits of ragged prompts, and of steps over a cache with leftovers in its free slots."""
    samples = make_voice(ROWS, count_samples(model))
    wide = wide or copy.deepcopy(model).double()
    fp32, fp64 = make_features(model, samples)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 190, (ROWS, 11), generator=generator)
    with torch.no_grad():
        states = [m.model.encoder(f).last_hidden_state for m, f in ((model, fp32), (wide, fp64))]
        logits = [m(f, decoder_input_ids=ids).logits for m, f in ((model, fp32), (wide, fp64))]
    (encoded,) = runs["encoder"]({"samples": samples})
    compare(FAMILY, name, stage, "encoder_states", encoded, *states)
    cross = dict(zip(name_pairs(model, "cross_"), runs["decoder.cross"]({"encoder_states": encoded}), strict=True))
    lengths = np.array([7, 1, 4])
    found, *cache = runs["decoder.prefill"]({"token_ids": ids[:, :7].numpy(), "lengths": lengths, **cross})
    all_found, wanted = [found], [[part[range(ROWS), lengths - 1] for part in logits]]
    cache = [np.pad(part, ((0, 0), (0, 0), (0, 6), (0, 0)), constant_values=3.0) for part in cache]
    for step in range(4):
        token = ids.numpy()[range(ROWS), lengths + step][:, None]
        past = dict(zip(name_pairs(model, "past_"), cache, strict=True))
        found, *cache = runs["decoder.decode"]({"token_ids": token, "lengths": lengths + step, **past, **cross})
        all_found.append(found)
        wanted.append([part[range(ROWS), lengths + step] for part in logits])
    pair = (torch.stack([parts[i] for parts in wanted]) for i in range(2))
    compare(FAMILY, name, stage, "logits", np.stack(all_found), *pair)


def name_pairs(model: Any, prefix: str) -> list[str]:
    layers = range(model.config.decoder_layers)
    return [f"{prefix}{kind}_{layer}" for layer in layers for kind in ("keys", "values")]


def check_tokens(name: str, model: Any, loop: SpeechRecognition) -> None:
    """Greedy tokens as `generate` gives them, row by row up to the end; and as many as the checkpoint wants."""
    samples = make_voice(ROWS, count_samples(model))
    features, _ = make_features(model, samples)
    steps = None if "max_length" in CASES.get(name, ({}, {}))[1] else STEPS
    theirs = model.generate(features, max_new_tokens=steps).tolist()
    mine = loop.transcribe_tokens(samples, max_new_tokens=steps)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    cut = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in theirs]
    flat = [np.array([token for row in rows for token in (*row, -1)]) for rows in (mine, cut)]
    record_tokens(FAMILY, name, *flat)
    assert len(set(flat[0].tolist())) > 5


@pytest.mark.parametrize("name", CASES)
def test_torch_equals_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    spec, graphs = build(save(model, tmp_path / "model"))
    runs = {graph: run_torch(module) for graph, module in graphs.items()}
    for component, graph in (("encoder", "encoder"), ("decoder", "decoder.cross")):
        assert sum(p.numel() for p in graphs[graph].module.parameters()) == count_parameters(spec)[component]
    check_forward(name, "torch", model, runs)
    check_tokens(name, model, open_loop(spec, graphs, runs, tmp_path))


def test_onnx_equals_transformers_and_parameters_stay_bfloat16(tmp_path: Path) -> None:
    folder = save(make_model("forced ids").to(torch.bfloat16), tmp_path / "model", max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model, wide = (
        hf.WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    spec, graphs = build(folder)
    assert {p.dtype for graph in graphs.values() for p in graph.module.parameters()} == {torch.bfloat16}
    runs = {name: run_onnx(spec, graph, tmp_path) for name, graph in graphs.items()}
    check_forward("bf16, shards", "onnx", model, runs, wide)
    check_tokens("bf16, shards", model, open_loop(spec, graphs, runs, tmp_path))


def test_log_mel_equals_the_feature_extractor(tmp_path: Path) -> None:
    """Thirty seconds, with digital silence: where a rounding shows most, 80 dB below the loudest."""
    samples = make_voice(2, 480_000)
    samples[1, 200_000:] = 0
    for mels in (80, 128):
        model = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**{**SIZES, "num_mel_bins": mels}))
        fp32, fp64 = make_features(model, samples)
        _, graphs = build(save(model, tmp_path / f"{mels}"))
        encoder = graphs["encoder"].module
        assert isinstance(encoder, ours.WhisperEncoder)
        found = encoder.compute_log_mel(torch.from_numpy(samples)).numpy()
        compare(FAMILY, f"{mels} mel bands, 30 s", "torch", "log-mel", found, fp32, fp64)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with a tokenizer, and its model."""
    folder = tmp_path_factory.mktemp("whisper") / "model"
    model = make_model("language detected", scale=1.2)
    save(model, folder)
    words = {f"w{token}": token for token in range(200)} | {f"<{token}>": token for token in range(200, 211)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.add_special_tokens(["w2", "w3", "w190", "w191", "w192", "w195", "w196", "w199"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


def test_run_prints_the_transcript(spoken: tuple[Path, Any], tmp_path: Path, metagen: Callable[..., Any]) -> None:
    """A file at another rate, in stereo, longer than a chunk: two chunks, each as `generate` has it, joined."""
    folder, model = spoken
    bundle = export(folder, tmp_path / "w.bundle", targets=("cpu",), precisions=("fp32", "int8"))
    length = count_samples(model)
    samples = make_voice(1, length + length // 2)[0]
    path = write_wav(tmp_path / "said.wav", np.stack([samples, samples]), 16000, kind=3, bits=32)
    chunks = np.pad(samples, (0, 2 * length - len(samples))).reshape(2, length)
    features, _ = make_features(model, chunks)
    heard = model.detect_language(features[:1])
    prompt = [3, int(heard), 199]
    theirs = model.generate(features, decoder_input_ids=torch.tensor([prompt, prompt]), max_new_tokens=30).tolist()
    with load(bundle, precision="fp32") as session:
        loop = session.pipeline
        assert isinstance(loop, SpeechRecognition)
        assert loop._choose_prompt(None, None) == [3, None, 199]
        assert loop._choose_prompt("fr", "translate") == [3, 191, 196, 199]
        with pytest.raises(InputError, match="the model has no language 'tlh'"):
            loop.transcribe([samples], language="tlh")
        with pytest.raises(InputError, match="there is nothing to transcribe"):
            loop.transcribe([])
        said = loop.transcribe([path], max_new_tokens=30)[0].split()
        tokens = loop.transcribe_tokens(chunks[:1], max_new_tokens=30)[0]
    wanted = [token for row in theirs for token in row[: row.index(2) if 2 in row else None]]
    assert prompt[1] in MULTILINGUAL["lang_to_id"].values()
    special = {2, 3, 190, 191, 192, 195, 196, 199}
    assert said == [f"w{token}" for token in wanted if token not in special and token <= 199]
    assert tokens and len(set(said)) > 3
    done = metagen("run", bundle, path)
    assert done.returncode == 0, done.stderr
    assert "transcript" in done.stdout and " ".join(said)[:40] in done.stdout


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Keys changed, or with None removed."""
    data = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_older_checkpoints_mean_the_same(tmp_path: Path) -> None:
    """Without a generation config its entries stand in the config; types under their old name; a part's processor."""
    folder = save(make_model("forced ids"), tmp_path / "model")
    wanted = open_checkpoint(folder).spec
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    edit(folder, dtype=None, torch_dtype="float32", **{k: v for k, v in generation.items() if k[0] != "_"})
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    assert open_checkpoint(folder).spec == wanted


def test_base_model_without_prefix(tmp_path: Path) -> None:
    model = make_model("tied")
    _, graphs = build(save(model.model, tmp_path / "model"))
    check_forward("base model", "torch", model, {name: run_torch(graph) for name, graph in graphs.items()})


BAD: dict[str, tuple[Callable[[Path], object], type[MetagenError], str]] = {
    "missing-tensor": (
        lambda f: change_tensors(f, lambda t: t.pop("model.decoder.layers.1.encoder_attn.k_proj.weight")),
        WeightsError,
        "the checkpoint lacks the tensor 'model.decoder.layers.1.encoder_attn.k_proj.weight'",
    ),
    "key-bias": (
        lambda f: change_tensors(
            f, lambda t: t.update({"model.encoder.layers.0.self_attn.k_proj.bias": torch.ones(30)})
        ),
        WeightsError,
        "'model.encoder.layers.0.self_attn.k_proj.bias' has no place in the model",
    ),
    "other-head": (
        lambda f: change_tensors(f, lambda t: t.update({"proj_out.weight": torch.ones(211, 30)})),
        WeightsError,
        "the config ties 'proj_out.weight' to the embedding, and the file holds another one",
    ),
    "activation": (lambda f: edit(f, activation_function="mish"), CheckpointError, "'activation_function' is 'mish'"),
    "heads": (lambda f: edit(f, encoder_attention_heads=4), CheckpointError, "num_heads 4 does not divide"),
    "language": (
        lambda f: edit(f, "generation_config.json", language="klingon"),
        CheckpointError,
        "the checkpoint's language 'klingon' is not among its 'lang_to_id'",
    ),
    "timestamps": (
        lambda f: edit(f, "generation_config.json", return_timestamps=True),
        CheckpointError,
        "'return_timestamps' of the generation config changes what is made",
    ),
    "penalty": (
        lambda f: edit(f, "generation_config.json", no_repeat_ngram_size=2),
        CheckpointError,
        "'no_repeat_ngram_size' of the generation config changes what is made",
    ),
    "dither": (
        lambda f: edit(f, "preprocessor_config.json", dither=1e-4),
        CheckpointError,
        "'dither' is 0.0001 in the checkpoint's config, which is not implemented",
    ),
    "mels": (
        lambda f: edit(f, "preprocessor_config.json", feature_size=80),
        CheckpointError,
        "'feature_size' is 80 in the checkpoint's config, which is not implemented",
    ),
    "start": (
        lambda f: edit(f, "generation_config.json", decoder_start_token_id=999),
        CheckpointError,
        "start_token has 999",
    ),
}


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_is_refused_in_words(case: str, tmp_path: Path) -> None:
    spoil, kind, words = BAD[case]
    folder = (
        save(make_model("French"), tmp_path / "model")
        if case == "language"
        else save(make_model("tied"), tmp_path / "model")
    )
    spoil(folder)
    with pytest.raises(kind) as caught:
        build(folder)
    assert words in str(caught.value).splitlines()[0], str(caught.value)


def shift(module: Any) -> None:
    forward = module.mel.forward
    module.mel.forward = lambda samples: forward(torch.nn.functional.pad(samples, (1, -1)))


MUTANTS: dict[str, Callable[[Mapping[str, GraphModule]], object]] = {
    "tanh GELU": lambda g: [setattr(layer.mlp, "activation", "gelu_tanh") for layer in g["encoder"].module.layers],
    "eps": lambda g: setattr(g["encoder"].module.output_norm, "eps", 1e-3),
    "shifted by one sample": lambda g: shift(g["encoder"].module),
    "one position too far": lambda g: g["decoder.cross"].module.decoder.position_embedding.weight.data.copy_(
        g["decoder.cross"].module.decoder.position_embedding.weight.data.roll(1, 0)
    ),
    "values as keys": lambda g: [
        layer.cross.key.weight.data.copy_(layer.cross.value.weight.data)
        for layer in g["decoder.cross"].module.decoder.layers
    ],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_comparison_notices(name: str, tmp_path: Path) -> None:
    model = make_model("tied")
    _, graphs = build(save(model, tmp_path / "model"))
    for parameter in (p for graph in graphs.values() for p in graph.module.parameters()):
        parameter.data = parameter.data.clone()  # not the mapped file
    MUTANTS[name](graphs)
    with pytest.raises(AssertionError, match="more than"):
        check_forward("mutant", "torch", model, {graph: run_torch(module) for graph, module in graphs.items()})


def test_spec_of_a_checkpoint_rebuilds_it(spoken: tuple[Path, Any]) -> None:
    from specs.load import dump_spec
    from specs.parsing.parse import parse_spec

    spec: Spec = open_checkpoint(spoken[0]).spec
    again = parse_spec(dump_spec(spec), source="x.yaml")
    assert again.components == spec.components and again.dims == spec.dims


def test_vocabulary_and_merges_become_a_tokenizer(tmp_path: Path) -> None:
    """As the libraries saved Whisper's before there was a tokenizer.json; only what was said is spelled."""
    folder = save(make_model("tied"), tmp_path / "model")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {word: token for token, word in enumerate([*letters[:190], "he", "ll", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    added = {"<|startoftranscript|>": len(words), "<|fr|>": len(words) + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": list(added)}))
    source = open_checkpoint(folder).spec.tokenizers["decoder"].source
    write_tokenizer(Path(source), tmp_path / "tokenizer.json")
    tokens = [*added.values(), words["he"], words["ll"], words["o"], words["<|endoftext|>"]]
    assert FileTokenizer(tmp_path / "tokenizer.json").decode_words(tokens) == "hello"
