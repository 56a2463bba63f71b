"""Options that a library follows and we do not, and numbers that no model has: refused by name, before any tensor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from exporters.checkpoints import read_spec
from specs.errors import CheckpointError

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CAUSAL = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi3", "Gemma", "Gemma2", "Gemma3Text", "GPTNeoX")


def write(folder: Path, kind: str, **changes: Any) -> Path:
    """A folder with the config alone, as the library writes it, with keys changed in its JSON."""
    getattr(hf, f"{kind}Config")(**(SIZES if kind in CAUSAL else {})).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("kind", [*CAUSAL, "GPT2", "CLIPText", "Whisper"])
def test_a_mask_that_is_turned_off(kind: str, tmp_path: Path) -> None:
    """transformers then lets every token see all others, in each model that has a causal mask."""
    if kind == "GPTNeoX":
        assert read_spec(write(tmp_path, kind, is_causal=True))
    with pytest.raises(CheckpointError) as caught:
        read_spec(write(tmp_path, kind, is_causal=False))
    assert caught.value.problem == "'is_causal' is False in the checkpoint's config, which is not implemented"


@pytest.mark.parametrize("kind", ["ViT", "CLIPVision", "Wav2Vec2", "Hubert"])
def test_a_mask_that_is_turned_on(kind: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_spec(write(tmp_path, kind, is_causal=True))
    assert caught.value.problem == "'is_causal' is True in the checkpoint's config, which is not implemented"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("Gemma2", {"attn_logit_softcapping": 0.0}, "'attn_logit_softcapping' in the checkpoint's config is not above"),
        ("Gemma2", {"final_logit_softcapping": -30.0}, "'final_logit_softcapping' in the checkpoint's config is not a"),
        (
            "Gemma2",
            {"final_logit_softcapping": {}},
            "'final_logit_softcapping' in the checkpoint's config is not a num",
        ),
        ("Gemma3Text", {"attn_logit_softcapping": 0.5}, "'attn_logit_softcapping' is 0.5 in the checkpoint's config"),
        ("Gemma3Text", {"_sliding_window_pattern": 0, "layer_types": None}, "'_sliding_window_pattern' in the"),
        ("Gemma2", {"query_pre_attn_scalar": 0}, "'query_pre_attn_scalar' in the checkpoint's config is not above 0"),
        ("Gemma", {"hidden_size": -1}, "'hidden_size' in the checkpoint's config is not above 0"),
        ("SmolLM3", {"no_rope_layer_interval": 0}, "'no_rope_layer_interval' in the checkpoint's config is not above"),
        ("Qwen2", {"num_hidden_layers": 10**12}, "'num_hidden_layers' in the checkpoint's config is out of range"),
        ("Llama", {"rms_norm_eps": 10**400}, "'rms_norm_eps' in the checkpoint's config is not a number"),
        ("ResNet", {"id2label": None, "num_labels": 10**12}, "'num_labels' in the checkpoint's config is out of range"),
        (
            "Phi3",
            {
                "original_max_position_embeddings": 1,
                "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]},
            },
            "'original_max_position_embeddings' in the checkpoint's config is out of range",
        ),
        ("Mistral", {"head_dim": 10**12}, "the checkpoint's config contradicts itself: components.decoder.head_dim"),
        ("GPTNeoX", {"head_dim": 4}, "'head_dim' is 4 in the checkpoint's config, which is not implemented"),
        ("GPTNeoX", {"num_attention_heads": 0}, "'num_attention_heads' in the checkpoint's config is out of range"),
        ("Encodec", {"sampling_rate": 0}, "'sampling_rate' in the checkpoint's config is out of range"),
        ("ViT", {"num_attention_heads": 0}, "'num_attention_heads' in the checkpoint's config is out of range"),
        ("ViT", {"patch_size": 0}, "'patch_size' in the checkpoint's config is no size that this model takes"),
        ("Wav2Vec2", {"vocab_size": 10**12}, "'vocab_size' in the checkpoint's config is out of range"),
    ],
)
def test_numbers_that_no_model_has(kind: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, kind, architectures=[f"{kind}ForImageClassification"], **changes)
    (folder / "vocab.json").write_text('{"a": 5}')
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        read_spec(folder)
    assert words in caught.value.problem
    assert time.perf_counter() - started < 5


def test_a_cap_of_null_is_none_and_a_missing_one_the_default(tmp_path: Path) -> None:
    decoder: Any = read_spec(write(tmp_path, "Gemma2", attn_logit_softcapping=None)).components["decoder"]
    assert (decoder.attention_softcap, decoder.logit_softcap) == (None, 30.0)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in data.items() if not key.endswith("softcapping")}))
    decoder = read_spec(tmp_path).components["decoder"]
    assert (decoder.attention_softcap, decoder.logit_softcap) == (50.0, 30.0)
