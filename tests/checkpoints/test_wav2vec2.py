"""wav2vec 2.0 and HuBERT against transformers: both norms, both orders, padding, the processor, spelled text."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.runtime import load
from engines.runtime.pipelines import SpeechCtc
from exporters.checkpoints import open_checkpoint
from specs.errors import CheckpointError, InputError, MetagenError, WeightsError
from specs.graphs import count_parameters
from specs.handlers import GraphModule
from specs.load import dump_spec
from specs.parsing.parse import parse_spec
from tests.checkpoints.compare import Array, compare, enliven, export, record_tokens
from tests.checkpoints.speech import Run, build, make_voice, open_loop, run_onnx, run_torch, write_wav

FAMILY = "wav2vec 2.0"
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU"]
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "conv_dim": (20, 20, 24),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "pad_token_id": 0,
}
LAYER: dict[str, Any] = {"feat_extract_norm": "layer", "conv_bias": True}
LARGE: dict[str, Any] = {**LAYER, "do_stable_layer_norm": True}
PUBLISHED: dict[str, Any] = {
    "conv_dim": (16,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embeddings": 128,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("Wav2Vec2", {}),
    "base, odd position kernel, biases": ("Wav2Vec2", {"num_conv_pos_embeddings": 7, "conv_bias": True}),
    "base, published convolutions": ("Wav2Vec2", PUBLISHED),
    "large": ("Wav2Vec2", LARGE),
    "large, eps, activations": (
        "Wav2Vec2",
        {**LARGE, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "feat_extract_activation": "relu"},
    ),
    "layer norms, post-norm": ("Wav2Vec2", {**LAYER, "hidden_act": "silu", "num_conv_pos_embedding_groups": 1}),
    "adapters of MMS": ("Wav2Vec2", {**LARGE, "adapter_attn_dim": 8}),
    "HuBERT": ("Hubert", {}),
    "HuBERT, large, no projection norm": ("Hubert", {**LARGE, "feat_proj_layer_norm": False}),
}
LENGTHS = (1003, 700, 421)


def make_model(name: str, **options: Any) -> Any:
    """The library's model, alive."""
    kind, config = CASES[name]
    torch.manual_seed(0)
    return enliven(getattr(hf, f"{kind}ForCTC")(getattr(hf, f"{kind}Config")(**{**SIZES, **config, **options})))


def save(model: Any, folder: Path, *, processor: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """With a processor of the library's making where one is wanted."""
    model.save_pretrained(folder, **options)
    if processor is not None:
        (folder / "vocab.json").write_text(json.dumps({label: token for token, label in enumerate(VOCABULARY)}))
        tokenizer = hf.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
        hf.Wav2Vec2Processor(hf.Wav2Vec2FeatureExtractor(**processor), tokenizer).save_pretrained(folder)
    return folder


def make_rows(lengths: tuple[int, ...] = LENGTHS) -> tuple[list[Array], dict[str, Array]]:
    """Sounds with a level that is not zero, by themselves and as our graph takes them: rubbish lies beyond each."""
    rows = [row[:length] + 0.05 for row, length in zip(make_voice(len(lengths), max(lengths)), lengths, strict=True)]
    samples = np.full((len(rows), max(lengths)), 0.7, np.float32)
    for place, row in zip(samples, rows, strict=True):
        place[: len(row)] = row
    return rows, {"samples": samples, "lengths": np.array(lengths, np.int64)}


def make_inputs(
    rows: list[Array], *, mask: bool, normalize: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The library's: fp32 as its extractor makes them, and the same formula in fp64; zeros beyond each sound."""
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    fp32 = extractor(rows, sampling_rate=16000, padding=True, return_tensors="pt")
    wide = torch.zeros(fp32["input_values"].shape, dtype=torch.float64)
    for place, row in zip(wide, rows, strict=True):
        exact = torch.from_numpy(row).double()
        scaled = (exact - exact.mean()) / (exact.var(correction=0) + 1e-7).sqrt() if normalize else exact
        place[: len(row)] = scaled
    fp64 = {"input_values": wide, "attention_mask": fp32["attention_mask"]}
    if not mask:
        return {"input_values": fp32["input_values"]}, {"input_values": wide}
    return dict(fp32), fp64


def check(
    name: str, stage: str, model: Any, run: Run, *, mask: bool, wide: Any = None, normalize: bool = True
) -> Array:
    rows, feed = make_rows()
    fp32, fp64 = make_inputs(rows, mask=mask, normalize=normalize)
    with torch.no_grad():
        narrow, exact = model(**fp32).logits, (wide or copy.deepcopy(model).double())(**fp64).logits
    (found,) = run(feed)
    compare("HuBERT" if name.startswith("HuBERT") else FAMILY, name, stage, "logits", found, narrow, exact)
    return found


@pytest.mark.parametrize("name", CASES)
def test_torch_equals_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    spec, graphs = build(save(model, tmp_path / "model"))
    module = graphs["encoder"].module
    assert sum(p.numel() for p in module.parameters()) == count_parameters(spec)["encoder"]
    check(name, "torch", model, run_torch(graphs["encoder"]), mask=model.config.feat_extract_norm == "layer")


@pytest.mark.parametrize("name", ["base", "large"])
def test_onnx_equals_transformers_and_parameters_stay_bfloat16(name: str, tmp_path: Path) -> None:
    """The position convolution alone is float32: it is computed of two tensors, as the library does in float32."""
    kind, _ = CASES[name]
    folder = save(make_model(name).to(torch.bfloat16), tmp_path / "model", max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    library = getattr(hf, f"{kind}ForCTC")
    model, wide = (library.from_pretrained(folder, dtype=dtype) for dtype in (torch.float32, torch.float64))
    spec, graphs = build(folder)
    kinds = {parameter.dtype for parameter in graphs["encoder"].module.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}
    run = run_onnx(spec, graphs["encoder"], tmp_path)
    check(f"{name}, bf16, shards", "onnx", model, run, mask=name == "large", wide=wide)


@pytest.mark.parametrize(
    ("processor", "mask"),
    [({"do_normalize": False, "return_attention_mask": True}, True), ({"do_normalize": True}, False)],
)
def test_processor_decides_on_normalisation_and_mask(processor: dict[str, bool], mask: bool, tmp_path: Path) -> None:
    model = make_model("base")
    _, graphs = build(save(model, tmp_path / "model", processor=processor))
    run = run_torch(graphs["encoder"])
    check(f"base, mask {mask}", "torch", model, run, mask=mask, normalize=processor["do_normalize"])


def test_padding_does_not_matter_where_it_is_masked(tmp_path: Path) -> None:
    _, graphs = build(save(make_model("large"), tmp_path / "model"))
    run = run_torch(graphs["encoder"])
    rows, feed = make_rows()
    (together,) = run(feed)
    for row, found in zip(rows, together, strict=True):
        (alone,) = run({"samples": row[None], "lengths": np.array([len(row)])})
        np.testing.assert_allclose(found[: alone.shape[1]], alone[0], atol=2e-5)


def test_weight_norm_as_it_was_spelled_before(tmp_path: Path) -> None:
    model = make_model("large")
    folder = save(model, tmp_path / "model")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

    def spell(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "parametrizations" in name]:
            leaf = name.split("conv.", 1)[1]
            tensors[name.replace(leaf, old[leaf])] = tensors.pop(name)

    change_tensors(folder, spell)
    _, graphs = build(folder)
    check("large, older spelling", "torch", model, run_torch(graphs["encoder"]), mask=True)


@pytest.mark.parametrize("name", ["base", "large"])
def test_run_spells_what_the_processor_spells(name: str, tmp_path: Path, metagen: Callable[..., Any]) -> None:
    model = make_model(name)
    mask = name == "large"
    folder = save(model, tmp_path / "model", processor={"return_attention_mask": mask})
    rows, _ = make_rows((3000, 1901))
    paths = [write_wav(tmp_path / f"{i}.wav", row, 16000, kind=3, bits=32) for i, row in enumerate(rows)]
    processor = hf.Wav2Vec2Processor.from_pretrained(folder)
    with torch.no_grad():
        given = [processor(row, sampling_rate=16000, return_tensors="pt").input_values for row in rows]
        ids = [model(values).logits[0].argmax(-1) for values in given]
    wanted = [processor.decode(row) for row in ids]
    spec, graphs = build(folder)
    assert spec.labels == tuple(VOCABULARY)
    loop = open_loop(spec, graphs, {"encoder": run_torch(graphs["encoder"])}, tmp_path)
    assert isinstance(loop, SpeechCtc)
    assert loop.transcribe(paths) == wanted
    found = np.concatenate([logits.argmax(-1) for logits in loop.compute_logits(rows)])
    record_tokens(FAMILY, name, found, torch.cat(ids).numpy())
    if name == "base":
        return
    bundle = export(folder, tmp_path / "v.bundle", targets=("cpu",), precisions=("fp32", "int8"))
    with load(bundle, precision="fp32") as session:
        pipeline = session.pipeline
        assert isinstance(pipeline, SpeechCtc)
        assert pipeline.transcribe(paths) == wanted
        with pytest.raises(InputError, match="there is nothing to transcribe"):
            pipeline.transcribe([])
    done = metagen("run", bundle, paths[0])
    assert done.returncode == 0, done.stderr
    assert "transcript" in done.stdout


def test_a_long_sound_is_cut_into_pieces(tmp_path: Path) -> None:
    spec, graphs = build(save(make_model("large"), tmp_path / "model"))
    longest = spec.dims["samples"].max
    loop = open_loop(spec, graphs, {"encoder": run_torch(graphs["encoder"])}, tmp_path)
    samples = make_voice(1, longest + 900)[0]
    pieces = [loop.transcribe([part])[0] for part in (samples[:longest], samples[longest:])]
    assert loop.transcribe([samples]) == [" ".join(pieces)]


def test_vocabulary_of_many_languages(tmp_path: Path) -> None:
    folder = save(make_model("adapters of MMS"), tmp_path / "model")
    labels = {label: token for token, label in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps({"eng": labels, "fra": {"<pad>": 0, "É": 5, "|": 9}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"target_lang": "fra", "do_lower_case": True}))
    spec = open_checkpoint(folder).spec
    assert spec.labels[5] == "É" and spec.labels[7] == "<unk>"
    again = parse_spec(dump_spec(spec), source="x.yaml")
    assert again.labels == spec.labels and again.components == spec.components
    (folder / "tokenizer_config.json").write_text(json.dumps({"target_lang": "deu"}))
    with pytest.raises(CheckpointError, match="no vocabulary for the language 'deu'"):
        open_checkpoint(folder)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


BAD: dict[str, tuple[Callable[[Path], object], type[MetagenError], str]] = {
    "no-head": (
        lambda f: change_tensors(f, lambda t: [t.pop(name) for name in ("lm_head.weight", "lm_head.bias")]),
        WeightsError,
        "the checkpoint lacks the tensor 'lm_head.weight'",
    ),
    "wrong-shape": (lambda f: edit(f, conv_kernel=(10, 5, 2)), WeightsError, "has the wrong shape"),
    "extra": (
        lambda f: change_tensors(f, lambda t: t.update({"wav2vec2.adapter.proj.weight": torch.ones(2)})),
        WeightsError,
        "'wav2vec2.adapter.proj.weight' has no place in the model",
    ),
    "adapter": (lambda f: edit(f, add_adapter=True), CheckpointError, "'add_adapter' is True"),
    "norm": (lambda f: edit(f, feat_extract_norm="batch"), CheckpointError, "'feat_extract_norm' is 'batch'"),
    "batch-norm": (lambda f: edit(f, conv_pos_batch_norm=True), CheckpointError, "'conv_pos_batch_norm' is True"),
    "strides": (lambda f: edit(f, conv_stride=[5, 2]), CheckpointError, "need the same number of layers"),
    "sizes": (lambda f: edit(f, conv_dim=[20, "x", 24]), CheckpointError, "conv_sizes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_is_refused_in_words(case: str, tmp_path: Path) -> None:
    spoil, kind, words = BAD[case]
    folder = save(make_model("base"), tmp_path / "model")
    spoil(folder)
    with pytest.raises(kind) as caught:
        build(folder)
    assert words in str(caught.value).splitlines()[0], str(caught.value)


def swap_queries_and_keys(module: Any) -> None:
    for layer in module.layers:
        query, key, value = layer.attention.qkv.weight.data.chunk(3)
        layer.attention.qkv.weight.data = torch.cat([key * 1.01, query, value])


MUTANTS: dict[str, Callable[[Any], object]] = {
    "eps": lambda m: setattr(m.norm, "eps", 1e-3),
    "tanh GELU": lambda m: [setattr(feature, "activation", "gelu_tanh") for feature in m.features],
    "first frame cut": lambda m: m.positions.conv.register_forward_hook(lambda _, given, found: found.roll(-1, -1)),
    "variance of samples": lambda m: setattr(
        m, "normalize_samples", lambda x, n: (x - x.mean(1, True)) / x.std(1, keepdim=True)
    ),
    "queries are keys": swap_queries_and_keys,
    "mask dropped": lambda m: setattr(m, "find_seen", lambda frames, n: torch.ones(len(n), frames, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_comparison_notices(name: str, tmp_path: Path) -> None:
    model = make_model("large")
    _, graphs = build(save(model, tmp_path / "model"))
    graph: GraphModule = graphs["encoder"]
    for parameter in graph.module.parameters():
        parameter.data = parameter.data.clone()  # not the mapped file
    MUTANTS[name](graph.module)
    with pytest.raises(AssertionError):
        check("mutant", "torch", model, run_torch(graph), mask=True)
