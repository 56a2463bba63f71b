"""Small models of VITS with live weights, what the library makes of a text, and the noise that both are given."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.checkpoints.compare import Array, enliven

CHARACTERS = [*" abcdefghijklmnopqrstuvwxyz'-", "\u0103", "\u0163", "<unk>", "<pad>"]
SIZES: dict[str, Any] = {
    "vocab_size": len(CHARACTERS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 20,
    "flow_size": 10,
    "spectrogram_bins": 9,
    "upsample_initial_channel": 20,
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [7, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 2, 4]],
    "duration_predictor_filter_channels": 14,
    "duration_predictor_flow_bins": 5,
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 2,
    "posterior_encoder_num_wavenet_layers": 1,
}
SPEAKERS: dict[str, Any] = {"num_speakers": 3, "speaker_embedding_size": 6}
CASES: dict[str, dict[str, Any]] = {
    "stochastic": {},
    "stochastic, speakers": {**SPEAKERS, "noise_scale_duration": 1.2, "wavenet_dilation_rate": 2},
    "plain": {"use_stochastic_duration_prediction": False, "layer_norm_eps": 1e-2},
    "plain, speakers": {**SPEAKERS, "use_stochastic_duration_prediction": False, "hidden_act": "gelu_new"},
    "odd sizes": {
        "num_attention_heads": 3,
        "use_bias": False,
        "window_size": 11,
        "ffn_kernel_size": 4,
        "hidden_act": "silu",
        "wavenet_kernel_size": 3,
        "duration_predictor_kernel_size": 5,
        "duration_predictor_tail_bound": 1.5,
        "depth_separable_num_layers": 2,
        "leaky_relu_slope": 0.3,
        "upsample_rates": [5],
        "upsample_kernel_sizes": [5],
        "speaking_rate": 1.7,
        "noise_scale": 0.3,
    },
    "one flow": {"duration_predictor_num_flows": 1, "prior_encoder_num_flows": 1, "speaker_embedding_size": 4},
}
TEXT = [0, 5, 0, 9, 0, 9, 0, 2, 0, 11, 0]


def make_model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = enliven(hf.VitsModel(hf.VitsConfig(**{**SIZES, **CASES[name], **options})))
    with torch.no_grad():  # durations are exponentials of these
        for part, parameter in model.named_parameters():
            if part.endswith(("flows.0.translate", "flows.0.log_scale")):
                parameter *= 0.2
    return model


def save(model: Any, folder: Path, *, tokenizer: Mapping[str, Any] | None = None, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    if tokenizer is not None:
        (folder / "vocab.json").write_text(json.dumps({one: token for token, one in enumerate(CHARACTERS)}))
        hf.VitsTokenizer(str(folder / "vocab.json"), **tokenizer).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def draw_alike(seed: int) -> Iterator[None]:
    """torch's normal numbers are numpy's, in the order in which the host loop draws them."""
    random = np.random.default_rng(seed)
    kept = torch.randn, torch.randn_like
    torch.randn = lambda *shape, **_: torch.from_numpy(random.standard_normal(shape, np.float32))
    torch.randn_like = lambda like: torch.from_numpy(random.standard_normal(like.shape, np.float32)).to(like.dtype)
    try:
        yield
    finally:
        torch.randn, torch.randn_like = kept


def speak(model: Any, ids: list[int], speaker: int, seed: int) -> Tensor:
    """The library's samples, in the model's precision; a model of one speaker is told none."""
    who = {"speaker_id": speaker} if model.config.num_speakers > 1 else {}
    with torch.no_grad(), draw_alike(seed):
        waveform: Tensor = model(input_ids=torch.tensor([ids]), **who).waveform[0]
    return waveform


def make_rows(config: Any) -> dict[str, dict[str, Array]]:
    """Inputs of each graph: three padded rows, with rubbish where no row reaches."""
    random = np.random.default_rng(3)
    lengths, frames = np.array([13, 1, 8], np.int64), np.array([4, 17, 9], np.int64)

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape, np.float32)

    ids = random.integers(0, config.vocab_size, (3, 13))
    who = {"speaker": draw(3, config.speaker_embedding_size)} if config.num_speakers > 1 else {}
    asked = {"speaker_ids": np.array([2, 0, 1])} if who else {}
    return {
        "text_encoder": {"token_ids": ids, "lengths": lengths, **asked},
        "durations": {"states": draw(3, 13, config.hidden_size), "lengths": lengths, "noise": draw(3, 2, 13), **who},
        "flow": {"prior_latents": draw(3, config.flow_size, 17), "lengths": frames, **who},
        "vocoder": {"latents": draw(3, config.flow_size, 17), **who},
    }


def run_library(model: Any, rows: Mapping[str, Mapping[str, Array]]) -> dict[str, Tensor]:
    """The library's parts on the same rows, in the model's precision."""
    dtype = next(model.parameters()).dtype
    given = {
        part: {
            name: torch.from_numpy(value).to(dtype) if value.dtype == np.float32 else torch.from_numpy(value)
            for name, value in feed.items()
        }
        for part, feed in rows.items()
    }
    text, durations, flow, vocoder = given.values()

    def mask(lengths: Tensor, size: int) -> Tensor:
        return (torch.arange(size) < lengths[:, None]).to(dtype)[:, None]

    seen, heard = mask(text["lengths"], 13), mask(flow["lengths"], 17)
    stochastic = model.config.use_stochastic_duration_prediction
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        found = model.text_encoder(text["token_ids"], seen.transpose(1, 2), (seen[:, 0] > 0).long())
        who = durations["speaker"][:, :, None] if "speaker" in durations else None
        patch.setattr(torch, "randn", lambda *_: durations["noise"])
        reverse = {"reverse": True, "noise_scale": 1.0} if stochastic else {}
        logarithms = model.duration_predictor(durations["states"].transpose(1, 2) * seen, seen, who, **reverse)
        who = flow["speaker"][:, :, None] if who is not None else None
        latents = model.flow(flow["prior_latents"], heard, who, reverse=True) * heard
        who = vocoder["speaker"][:, :, None] if who is not None else None
        outputs = {
            "states": found.last_hidden_state,
            "prior_means": found.prior_means,
            "prior_log_variances": found.prior_log_variances,
            "log_durations": logarithms[:, 0] * seen[:, 0],
            "latents": latents,
            "samples": model.decoder(vocoder["latents"], who)[:, 0],
        }
        if "speaker_ids" in text:
            outputs["speaker"] = model.embed_speaker(text["speaker_ids"])
    return outputs
