"""Text decoders against transformers: each option of their configs, ragged prompts, the cache, greedy text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporters.checkpoints import open_checkpoint
from specs.errors import MetagenError, SpecError, WeightsError
from specs.handlers import get_handler
from specs.load import dump_spec
from specs.models.text.causal import Decode, Prefill
from specs.models.text.rope import Angles
from specs.parsing.parse import parse_spec
from tests.checkpoints.compare import ROWS
from tests.checkpoints.support import build, edit_config, save
from tests.checkpoints.tiny_decoders import (
    CASES,
    LENGTHS,
    LLAMA3,
    Case,
    check,
    make_model,
    open_onnx,
)


@pytest.mark.parametrize("name", CASES)
def test_torch_equals_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(CASES[name])
    _, graphs = build(save(model, tmp_path / "model"))
    assert isinstance(graphs[0].module, Prefill) and isinstance(graphs[1].module, Decode)
    parameters = sum(p.numel() for p in graphs[0].module.parameters())
    assert parameters == graphs[0].module.decoder.config.count_parameters()
    check(name, "torch", model, [graph.module for graph in graphs], CASES[name].lengths)


TWO = {"num_hidden_layers": 2}
ONNX_CASES = {
    "Llama, llama3, biases": (
        Case("Llama", {**TWO, **LLAMA3, "attention_bias": True, "mlp_bias": True}),
        torch.float32,
    ),
    "Qwen 3, windows, fp16, shards": (
        Case(
            "Qwen3",
            {**TWO, "head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 6}
            | {"layer_types": ["sliding_attention", "full_attention"]},
        ),
        torch.float16,
    ),
    "Phi 3, longrope, bf16, shards": (
        Case("Phi3", {**CASES["Phi 3, longrope"].options, **TWO, "sliding_window": 11}),
        torch.bfloat16,
    ),
    "Gemma 2": (Case("Gemma2", {**TWO, "head_dim": 12, "sliding_window": 6}), torch.float32),
    "GPT-2": (Case("GPT2", {**TWO, "scale_attn_by_inverse_layer_idx": True}), torch.float32),
}


@pytest.mark.parametrize("name", ONNX_CASES)
def test_onnx_equals_transformers(name: str, tmp_path: Path) -> None:
    """Parameters stay as they are stored; the graph computes in float32, as the library does when told to."""
    case, dtype = ONNX_CASES[name]
    folder = save(make_model(case).to(dtype), tmp_path / "model", max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    spec, graphs = build(folder)
    assert {parameter.dtype for parameter in graphs[0].module.parameters()} == {dtype}
    check(name, "onnx", model, [open_onnx(spec, graph, tmp_path) for graph in graphs], LENGTHS)


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("Llama, linear", {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 3.5}}),
        ("Llama, llama3", {"rope_theta": 500.0, "rope_scaling": {**LLAMA3["rope_parameters"], "type": "llama3"}}),
        (
            "Llama, yarn",
            {
                "rope_theta": 500,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
            },
        ),
        ("Qwen 2, windows", {"layer_types": None, "rope_theta": 10000.0}),
        ("Gemma 2", {"layer_types": None, "rope_theta": 10000.0, "hidden_act": "gelu"}),
        (
            "Gemma 3",
            {"layer_types": None, "rope_theta": 1000000, "rope_local_base_freq": 10000, "sliding_window_pattern": 6},
        ),
        ("GPT-NeoX", {"rotary_pct": 0.67, "rotary_emb_base": 10000}),
        ("Gemma", {"rope_theta": 10000.0, "hidden_act": "gelu", "hidden_activation": None}),
    ],
)
def test_older_configs_mean_the_same(name: str, spelling: dict[str, Any], tmp_path: Path) -> None:
    folder = save(make_model(CASES[name]), tmp_path / "model")
    wanted = open_checkpoint(folder).spec
    edit_config(folder, rope_parameters=None, **spelling)
    assert open_checkpoint(folder).spec == wanted


@pytest.mark.parametrize(
    "rotation",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 300.0},
        {"rope_parameters": {"full_attention": {"type": "linear", "factor": 2.0}}},
    ],
    ids=["beside the new key", "old", "by its old name"],
)
def test_a_scaled_gemma_3_however_it_is_spelled(rotation: dict[str, Any], tmp_path: Path) -> None:
    """`rope_scaling` changes the rotation of layers without a window, and leaves that of the others."""
    folder = save(make_model(CASES["Gemma 3, scaled"]), tmp_path / "model")
    edit_config(folder, **rotation)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _, graphs = build(folder)
    check(f"Gemma 3, {next(iter(rotation))}", "torch", model, [graph.module for graph in graphs], LENGTHS)


def test_names_without_a_prefix(tmp_path: Path) -> None:
    """The model without its head, as the base class saves it; GPT-2's first files with their masks."""
    model: Any = make_model(CASES["Llama, 1 kv head, tied"])
    _, graphs = build(save(model.model, tmp_path / "base"))
    check("Llama, base model", "torch", model, [graph.module for graph in graphs], LENGTHS)
    model = make_model(CASES["GPT-2"])
    folder = save(model.transformer, tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 96, 96).tril() for layer in range(3)}
    save_file({**tensors, **masks}, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(folder).unused["h.2.attn.bias"] == "the causal mask, a constant"
    _, graphs = build(folder)
    check("GPT-2, base model", "torch", model, [graph.module for graph in graphs], LENGTHS)


def test_a_tied_head_is_stored_too(tmp_path: Path) -> None:
    folder = save(make_model(CASES["Qwen 2"]), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(folder).unused == {"lm_head.weight": "tied to the embedding, and equal to it"}
    tensors["lm_head.weight"][3, 4] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="the config ties 'lm_head.weight' to the embedding, and the file holds"):
        open_checkpoint(folder)


MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "epsilon": ("Llama", {"rms_norm_eps": 1e-5}),
    "theta": ("Llama", {"rope_theta": 10001.0}),
    "window": ("Mistral", {"window": 8}),
    "layers of a window": ("Gemma 2", {"full_layers": [0]}),
    "gelu": ("Gemma", {"activation": "gelu"}),
    "soft cap": ("Gemma 2", {"attention_softcap": 49.9}),
    "scale": ("Gemma 2", {"attention_scale": 12**-0.5}),
    "order of norm and weight": ("Gemma", {"norm_offset": False}),
    "embedding scale": ("Gemma", {"embedding_scale": 5.999}),
    "rotation of near layers": ("Gemma 3", {"window_rope_theta": 10010.0}),
    "attention factor": ("Llama, yarn", {"rope_scaling": {"attention_factor": 1.138}}),
    "wavelengths": ("Llama, llama3", {"rope_scaling": {"low_freq_factor": 0.51}}),
    "layers without positions": ("SmolLM 3", {"nope_layers": []}),
    "halves side by side": ("GPT-NeoX", {"parallel": False}),
    "scale by layer": ("GPT-2, all options", {"scale_by_layer": False}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_would_notice(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    name, changes = MUTANTS[mutant]
    model = make_model(CASES[name])
    checkpoint = open_checkpoint(save(model, tmp_path / "model"))
    config = checkpoint.spec.components["decoder"]
    data = config.model_dump()
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    spec = checkpoint.spec.model_copy(update={"components": {"decoder": type(config).model_validate(data)}})
    graphs = get_handler(spec).build(spec, parameters=checkpoint.source)
    with pytest.raises(AssertionError):
        check(f"mutant, {mutant}", "mutant", model, [graph.module for graph in graphs], LENGTHS)


def test_the_comparison_would_notice_another_rotary_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interleave(x: Tensor, angles: Angles) -> Tensor:
        first, second = x[..., 0::2], x[..., 1::2]
        pairs = first * angles.cos - second * angles.sin, second * angles.cos + first * angles.sin
        return torch.stack(pairs, -1).flatten(-2)

    model = make_model(CASES["Llama"])
    _, graphs = build(save(model, tmp_path / "model"))
    monkeypatch.delenv(ROWS, raising=False)
    monkeypatch.setattr("specs.models.text.decoder.rotate", interleave)
    with pytest.raises(AssertionError):
        check("mutant, rotary order", "mutant", model, [graph.module for graph in graphs], LENGTHS)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "Llama",
            {"hidden_act": "relu2"},
            "'hidden_act' is 'relu2' in the checkpoint's config, which is not implemented",
        ),
        ("Llama", {"rope_parameters": {"rope_type": "mrope"}}, "'rope_type' is 'mrope'"),
        ("Llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
        ("Llama", {"quantization_config": {"quant_method": "gptq"}}, "weights are quantised already"),
        ("Qwen 2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "'layer_types' cannot"),
        ("Qwen 2", {"layer_types": ["full_attention"]}, "'layer_types' cannot"),
        ("Gemma", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is True"),
        ("GPT-2", {"add_cross_attention": True}, "'add_cross_attention' is True"),
        ("Llama", {"num_key_value_heads": 4}, "num_kv_heads 4 does not divide num_heads 6"),
        ("Llama", {"num_key_value_heads": 3}, "has the wrong shape"),
        ("Llama", {"attention_bias": True}, "the checkpoint lacks the tensor 'model.layers.0.self_attn.o_proj.bias'"),
        ("Qwen 2", {"model_type": "llama"}, "has no place in the model that its config describes"),
        ("Llama", {"num_hidden_layers": 2}, "has no place in the model that its config describes"),
        ("GPT-2", {"n_layer": 4}, "the checkpoint lacks the tensor 'transformer.h.3.ln_1.weight'"),
    ],
)
def test_a_config_that_is_not_followed(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save(make_model(CASES[name]), tmp_path / "model")
    edit_config(folder, **changes)
    with pytest.raises(MetagenError) as caught:
        build(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(("name", "limit"), [("Phi 3, longrope", 64), ("Llama, dynamic", 96), ("GPT-2", 96)])
def test_a_cache_ends_where_positions_do(name: str, limit: int, tmp_path: Path) -> None:
    spec = open_checkpoint(save(make_model(CASES[name]), tmp_path / "model")).spec
    assert spec.dims["cache"].max == limit
    text = dump_spec(spec).replace(f"max: {limit}}}", f"max: {limit + 1}}}")
    with pytest.raises(SpecError, match="'cache' reaches beyond the positions that the decoder has"):
        parse_spec(text, source="spec.yaml")
