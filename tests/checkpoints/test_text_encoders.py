"""BERT and its kin, T5's encoder and sentence-transformers folders against their libraries, with padded batches."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

from engines.runtime import load
from engines.runtime.pipelines import TextEmbedding
from engines.runtime.text.tokenizers import FileTokenizer
from exporters.checkpoints import open_checkpoint, read_spec
from exporters.checkpoints.tokenizers.assets import write_tokenizer
from exporters.checkpoints.tokenizers.bert import make_word_piece
from specs.errors import CheckpointError, MetagenError, WeightsError
from specs.handlers import get_handler
from specs.schema import WeightsSpec
from tests.checkpoints.compare import ROWS, compare, enliven, export
from tests.checkpoints.support import Array, build, edit_config, open_onnx, run_torch, save

with warnings.catch_warnings():  # the library's own
    warnings.simplefilter("ignore")
    import sentence_transformers as st
    import sentence_transformers.base.modules as base_modules
    from sentence_transformers.sentence_transformer.modules import Pooling

SIZES = {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 90}
T5 = {"d_model": 28, "d_kv": 6, "d_ff": 40, "num_layers": 3, "num_heads": 4, "vocab_size": 90}
DISTIL = {"dim": 36, "hidden_dim": 44, "n_layers": 3, "n_heads": 3, "vocab_size": 90}
LENGTHS = np.array([17, 1, 6])


@dataclasses.dataclass(frozen=True)
class Case:
    """The library's class, and what its config says beside the sizes."""

    model: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    pooled: bool = True  # whether the library's model has a pooler
    onnx: bool = False


CASES = {
    "BERT": Case("BertModel", {"max_position_embeddings": 19}, onnx=True),
    "BERT, relu, eps, 1 head": Case(
        "BertModel", {"hidden_act": "relu", "layer_norm_eps": 0.03, "num_attention_heads": 1}
    ),
    "BERT, tanh gelu, no pooler": Case("BertModel", {"hidden_act": "gelu_new", "type_vocab_size": 1}, pooled=False),
    "RoBERTa": Case("RobertaModel", {"pad_token_id": 3, "type_vocab_size": 1, "max_position_embeddings": 23}),
    "XLM-R": Case("XLMRobertaModel", {"pad_token_id": 1}),
    "DistilBERT": Case("DistilBertModel", {"activation": "relu"}, pooled=False),
    "DistilBERT, sinusoids": Case("DistilBertModel", {"sinusoidal_pos_embds": True}, pooled=False),
    "MPNet": Case("MPNetModel", onnx=True),
    "T5 encoder": Case("T5EncoderModel", {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 9}),
    "T5 encoder, gated": Case("T5EncoderModel", {"feed_forward_proj": "gated-gelu"}, onnx=True),
    "T5 encoder, gated silu, eps": Case(
        "T5EncoderModel", {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 0.1}
    ),
    "mT5 encoder": Case("MT5EncoderModel"),
    "umT5 encoder": Case("UMT5EncoderModel"),
}


def make_model(case: Case) -> Any:
    kind = case.model.removesuffix("Model").removesuffix("Encoder")
    sizes = T5 if "T5" in kind else DISTIL if "Distil" in kind else SIZES
    options = {} if case.pooled or "Distil" in kind else {"add_pooling_layer": False}
    model = getattr(hf, case.model)(getattr(hf, f"{kind}Config")(**{**sizes, **case.options}), **options)
    return enliven(model, scale=1.5)


def make_ids(tokens: int = 17) -> Array:
    return np.random.default_rng(0).integers(5, 90, (len(LENGTHS), tokens))


def run_library(model: Any, ids: Array, lengths: Array) -> tuple[Any, Any]:
    """Outputs in fp32 and fp64; the padding's id is what the library expects there."""
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    ids = np.where(mask, ids, model.config.pad_token_id or 0)
    feed = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
    with torch.no_grad():
        return model(**feed), copy.deepcopy(model).double()(**feed)


def check(name: str, stage: str, ours: dict[str, Array], fp32: Any, fp64: Any, lengths: Array = LENGTHS) -> None:
    family, _, rest = name.partition(", ")
    valid = np.arange(ours["token_features"].shape[1]) < lengths[:, None]
    features = [np.asarray(one)[valid] for one in (ours["token_features"], fp32[0], fp64[0])]
    compare(family, rest or "plain", stage, "token_features", *features)
    if getattr(fp32, "pooler_output", None) is not None:
        pooled = (fp32.pooler_output, fp64.pooler_output)
        compare(family, rest or "plain", stage, "embedding", ours["embedding"], *pooled)
    elif "embedding" in ours:
        means = [
            np.stack([f[valid[: len(f)][i]].mean(0) for i, f in enumerate(np.asarray(x[0]))]) for x in (fp32, fp64)
        ]
        compare(family, rest or "plain", stage, "mean", ours["embedding"], *means)


@pytest.mark.parametrize("name", CASES)
def test_encoders(name: str, tmp_path: Path) -> None:
    model = make_model(CASES[name])
    spec, (graph,) = build(save(model, tmp_path))
    ids = make_ids()
    fp32, fp64 = run_library(model, ids, LENGTHS)
    check(name, "torch", run_torch(graph, token_ids=ids, lengths=LENGTHS), fp32, fp64)
    if CASES[name].onnx:
        run = open_onnx(spec, graph, tmp_path)
        check(name, "onnx", run(token_ids=ids, lengths=LENGTHS), fp32, fp64)


def test_distances_beyond_the_last_bucket(tmp_path: Path) -> None:
    """300 tokens: T5 has no positions, and all far tokens share a bucket."""
    model = make_model(CASES["T5 encoder, gated"])
    _, (graph,) = build(save(model, tmp_path))
    lengths = np.array([300, 150, 2])
    ids = make_ids(300)
    fp32, fp64 = run_library(model, ids, lengths)
    check("T5 encoder, 300 tokens", "torch", run_torch(graph, token_ids=ids, lengths=lengths), fp32, fp64, lengths)


def test_narrow_weights_in_shards(tmp_path: Path) -> None:
    model = make_model(CASES["BERT"]).to(torch.bfloat16)
    folder = save(model, tmp_path / "model", max_shard_size="20KB")
    model = hf.BertModel.from_pretrained(folder, dtype=torch.float32)
    spec, (graph,) = build(folder)
    ids = make_ids()
    fp32, fp64 = run_library(model, ids, LENGTHS)
    run = open_onnx(spec, graph, tmp_path)
    check("BERT, bf16, shards", "onnx", run(token_ids=ids, lengths=LENGTHS), fp32, fp64)


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "##s",
    ".",
    "a",
    "é",
    "##b",
]
TEXTS = ("The cat sat on the mat.", "Dogs", "A cats dogs unknown. 猫 É", "the " * 30)


def write_sentence_model(folder: Path, *modules: nn.Module, **options: Any) -> st.SentenceTransformer:
    """A tiny encoder with a tokenizer, as sentence-transformers saves it."""
    config = hf.BertConfig(**{**SIZES, "vocab_size": len(WORDS)}, max_position_embeddings=20)
    encoder = folder / "encoder"
    enliven(hf.BertModel(config), scale=1.5).save_pretrained(encoder)  # type: ignore[operator]
    (encoder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    hf.BertTokenizer(str(encoder / "vocab.txt"), model_max_length=options.get("max_tokens", 16)).save_pretrained(
        encoder
    )
    model = st.SentenceTransformer(modules=[base_modules.Transformer(str(encoder)), *modules])
    model.save_pretrained(str(folder / "model"))
    return model


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pooling(mode: str, tmp_path: Path) -> None:
    model = write_sentence_model(tmp_path, Pooling(36, pooling_mode=mode))
    _, (graph,) = build(tmp_path / "model")
    compare_sentences(f"sentence-transformers, {mode}", model, graph)


def compare_sentences(name: str, model: st.SentenceTransformer, graph: Any) -> None:
    features = model.tokenize(list(TEXTS))
    ids, mask = features["input_ids"].numpy(), features["attention_mask"].numpy()
    with torch.no_grad():
        fp32 = model(dict(features))["sentence_embedding"]
        fp64 = copy.deepcopy(model).double()(dict(features))["sentence_embedding"]
    ours = run_torch(graph, token_ids=ids, lengths=mask.sum(1))["embedding"]
    compare(*name.split(", "), "torch", "embedding", ours, fp32, fp64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Dense, unit length: the whole path, with fp16 and int8 beside fp32, and for TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("sentences")
    dense = enliven(base_modules.Dense(36, 12, activation_function=nn.Tanh()), scale=0.5)
    model = write_sentence_model(folder, Pooling(36, "mean"), dense, base_modules.Normalize())
    return export(folder / "model", folder / "x.bundle", precisions=("fp32", "fp16", "int8"), targets=("cpu",)), model


def test_sentences_to_vectors(bundle: tuple[Path, Any]) -> None:
    """The text pipeline gives what `encode` gives: the same ids, the same vectors, in the order that was asked."""
    folder, model = bundle
    with load(folder) as session:
        pipeline = session.pipeline
        assert isinstance(pipeline, TextEmbedding)
        assert pipeline._settings["vocab_size"] == len(WORDS)  # what a text's ids are held against
        for text in TEXTS:
            assert pipeline.tokenize(text) == model.tokenize([text])["input_ids"][0].tolist()
        vectors = pipeline.encode(list(TEXTS))
    assert len(pipeline.tokenize("the " * 30)) == 16
    wanted = model.encode(list(TEXTS))
    np.testing.assert_allclose(vectors, wanted, atol=2e-6, rtol=0)


def test_vocabulary_alone_makes_the_same_tokenizer(tmp_path: Path) -> None:
    write_sentence_model(tmp_path, Pooling(36, "mean"))
    encoder = tmp_path / "encoder"
    (encoder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    made = tokenizers.Tokenizer.from_str(json.dumps(make_word_piece(encoder / "vocab.txt")))
    theirs = hf.BertTokenizer.from_pretrained(encoder)
    texts = [*TEXTS, "[MASK] the-cat\tSAT\u0000", "ébé", "", "x" * 120, "[CLS] dog [SEP]"]
    for text in texts:
        assert made.encode(text).ids == theirs(text)["input_ids"], text
    edit_config(encoder, "tokenizer_config.json", do_lower_case=False)
    assert make_word_piece(encoder / "vocab.txt")["normalizer"]["lowercase"] is False
    (encoder / "tokenizer.json").unlink()
    source = Path(read_spec(encoder).tokenizers["encoder"].source)
    assert source.name == "vocab.txt"
    edit_config(encoder, "tokenizer_config.json", do_lower_case=True)
    write_tokenizer(source, tmp_path / "asset.json")  # what a bundle carries
    for text in texts:
        assert FileTokenizer(tmp_path / "asset.json").encode(text) == theirs(text)["input_ids"], text


MUTANTS = {
    "eps": ("BERT", {"layer_norm_eps": 1e-5}),
    "tanh gelu": ("BERT", {"hidden_act": "gelu_new"}),
    "positions by one": ("RoBERTa", {"pad_token_id": 2, "max_position_embeddings": 23}),
    "silu": ("mT5 encoder", {"dense_act_fn": "silu"}),
    "far tokens": ("T5 encoder", {"relative_attention_max_distance": 7}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_noticed(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    name, change = MUTANTS[mutant]
    model = make_model(CASES[name])
    folder = save(model, tmp_path)
    edit_config(folder, **change)
    _, (graph,) = build(folder)
    ids = make_ids()
    fp32, fp64 = run_library(model, ids, LENGTHS)
    with pytest.raises(AssertionError, match="more than"):
        check(name, "torch", run_torch(graph, token_ids=ids, lengths=LENGTHS), fp32, fp64)


def test_a_dropped_mask_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    model = make_model(CASES["MPNet"])
    _, (graph,) = build(save(model, tmp_path))
    ids = make_ids()
    fp32, fp64 = run_library(model, ids, LENGTHS)
    with pytest.raises(AssertionError, match="more than"):
        check("MPNet", "torch", run_torch(graph, token_ids=ids, lengths=np.full(3, 17)), fp32, fp64)


def test_names_from_tensorflow(tmp_path: Path) -> None:
    """gamma and beta, under `bert.`, with the head that guesses words beside it."""
    folder = save(make_model(CASES["BERT"]), tmp_path)
    _, (graph,) = build(folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    save_file({**renamed, "cls.predictions.bias": torch.zeros(90)}, folder / "model.safetensors")
    _, (other,) = build(folder)
    for one, two in zip(graph.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(one, two)
    assert "cls.predictions.bias" in open_checkpoint(folder).unused


@pytest.mark.parametrize(
    ("name", "change", "kind", "words"),
    [
        ("BERT", {"position_embedding_type": "relative_key"}, CheckpointError, "'position_embedding_type' is"),
        ("BERT", {"is_decoder": True}, CheckpointError, "'is_decoder' is True"),
        ("BERT", {"max_position_embeddings": 25}, WeightsError, "position"),
        ("MPNet", {"relative_attention_num_buckets": 16}, CheckpointError, "'relative_attention_num_buckets' is 16"),
        ("MPNet", {"pad_token_id": 5}, CheckpointError, "'pad_token_id' is 5"),
        ("T5 encoder", {"feed_forward_proj": "gated-mish", "dense_act_fn": None}, CheckpointError, "mish"),
        ("BERT", {"num_attention_heads": 5}, MetagenError, "num_heads 5 does not divide hidden_size 36"),
    ],
)
def test_bad_configs(name: str, change: dict[str, Any], kind: type[MetagenError], words: str, tmp_path: Path) -> None:
    folder = save(make_model(CASES[name]), tmp_path)
    edit_config(folder, **change)
    with pytest.raises(kind) as caught:
        build(folder)
    assert words in str(caught.value)


CAUSAL = {**SIZES, "num_key_value_heads": 1, "pad_token_id": 0}
HEADS = {
    "BertForSequenceClassification": SIZES,
    "T5ForTokenClassification": T5,
    "LlamaForSequenceClassification": CAUSAL,
    "Qwen2ForTokenClassification": CAUSAL,
    "GPT2ForSequenceClassification": {"n_embd": 12, "n_layer": 1, "n_head": 2, "vocab_size": 90},
    "GPTNeoXForQuestionAnswering": SIZES,
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_for_classes_is_refused(kind: str, tmp_path: Path) -> None:
    config = getattr(hf, kind.partition("For")[0] + "Config")(**HEADS[kind])
    save(getattr(hf, kind)(config), tmp_path)
    with pytest.raises(CheckpointError, match="head for classes") as caught:
        read_spec(tmp_path)
    assert caught.value.got == kind


def test_unknown_modules_are_refused(tmp_path: Path) -> None:
    write_sentence_model(tmp_path, Pooling(36, ("mean", "max")))
    with pytest.raises(CheckpointError, match="this pooling is not implemented"):
        read_spec(tmp_path / "model")
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="these modules"):
        read_spec(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("T5 encoder", {"dense_act_fn": "silu"}),
        ("T5 encoder", {"dense_act_fn": None, "is_gated_act": None, "feed_forward_proj": "tanh"}),
        ("umT5 encoder", {"dense_act_fn": "gelu"}),
        ("umT5 encoder", {"dense_act_fn": None, "is_gated_act": None, "feed_forward_proj": "gated-silu"}),
    ],
)
def test_t5_says_its_activation_twice(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """The library lets the second key win; a file may have either, or both with different words."""
    edit_config(save(make_model(CASES[name]), tmp_path), **changes)
    model = getattr(hf, CASES[name].model).from_pretrained(tmp_path, dtype=torch.float32)
    ids = make_ids()
    fp32, fp64 = run_library(model, ids, LENGTHS)
    _, (graph,) = build(tmp_path)
    said = next(value for value in changes.values() if value)
    check(f"{name}, {said}", "torch", run_torch(graph, token_ids=ids, lengths=LENGTHS), fp32, fp64)


def test_t5_with_two_embeddings(tmp_path: Path) -> None:
    """transformers reads the encoder's own where both are stored and differ; which was trained nobody can say."""
    path = save(make_model(CASES["T5 encoder"]), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    assert open_checkpoint(tmp_path).unused == {"encoder.embed_tokens.weight": "tied to shared, and equal to it"}
    tensors["encoder.embed_tokens.weight"][7] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="ties 'encoder.embed_tokens.weight' to the embedding, and the file holds"):
        open_checkpoint(tmp_path)


def test_another_kind_of_sentence_model(tmp_path: Path) -> None:
    """A cross encoder's folder looks alike, and its library reads it in another way."""
    write_sentence_model(tmp_path, Pooling(36, "mean"))
    assert read_spec(tmp_path / "model")
    edit_config(tmp_path / "model", "config_sentence_transformers.json", model_type="CrossEncoder")
    with pytest.raises(CheckpointError, match="'model_type' is 'CrossEncoder'"):
        read_spec(tmp_path / "model")


@pytest.mark.parametrize("name", ["T5 encoder, gated", "umT5 encoder"])
def test_seeded_weights_start_as_the_library_s(name: str, tmp_path: Path) -> None:
    """T5 divides no score: with queries of the usual size a softmax would be sharper than any real one."""
    kind = CASES[name].model
    config = getattr(hf, kind.removesuffix("EncoderModel") + "Config")(**{**T5, "d_model": 60, **CASES[name].options})
    checkpoint = open_checkpoint(save(getattr(hf, kind)(config), tmp_path))
    build_graphs = get_handler(checkpoint.spec).build
    (theirs,) = build_graphs(checkpoint.spec, parameters=checkpoint.source)
    (ours,) = build_graphs(checkpoint.spec.model_copy(update={"weights": WeightsSpec()}))
    wanted = {key: float(value.std()) for key, value in theirs.module.named_parameters() if "norm" not in key}
    for key, value in ours.module.named_parameters():
        if "norm" not in key:
            assert 0.75 < float(value.std()) / wanted[key] < 1.3, key  # ours are cut at two sigma: 0.88 of one
    assert any("distance" in key for key in wanted)
    assert any("query" in key for key in wanted)
