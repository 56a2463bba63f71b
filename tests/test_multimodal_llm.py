"""The document's multimodal model: whatever is handed over stands before the text, and nothing where it is missing."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.runtime import Request, load
from metagen_deploy import pipeline
from specs.errors import InputError, SpecError
from specs.handlers import get_handler
from specs.load import ZOO, load_spec, parse_spec
from specs.models.causal import CausalModel, read_prompt
from specs.progress import ignore_progress

NAME = "multimodal_llm:tiny"
SPEC = load_spec(NAME)
PROMPT = "What is it?"


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    return {graph.name: graph.module for graph in get_handler(SPEC).build(SPEC)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mllm")
    pipeline.export(NAME, output=folder / "m.bundle", precisions=("fp32",), progress=ignore_progress)
    return folder / "m.bundle"


@pytest.fixture(scope="module")
def media() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        "image": random.random((32, 32, 3), np.float32),
        "sound": (0.3 * random.standard_normal(40 * 160)).astype(np.float32),
    }


def generate(modules: dict[str, nn.Module], parts: list[Tensor], prompt: str, count: int) -> list[int]:
    """As the document does: embeddings of what is there, one after the other; all computed again for each token."""
    decoder = cast(CausalModel, cast(Any, modules["llm.prefill"]).decoder)
    ids = list(prompt.encode())
    made: list[int] = []
    with torch.no_grad():
        while len(made) < count:
            text = decoder.embed(torch.tensor([ids + made]))
            hidden = torch.cat([*parts, text], dim=1)
            logits = read_prompt(decoder, hidden, torch.tensor([hidden.shape[1]]))[0]
            made.append(int(logits.argmax()))
    return made


@pytest.mark.parametrize("given", [("sound", "image"), ("image",), ("sound",), ()], ids="+".join)
def test_tokens_equal_the_documents_model(
    given: tuple[str, ...], bundle: Path, modules: dict[str, nn.Module], media: dict[str, np.ndarray[Any, Any]]
) -> None:
    image = torch.from_numpy(media["image"].transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        parts = {
            "sound": modules["audio_resampler"](modules["audio"](torch.from_numpy(media["sound"][None]))),
            "image": modules["vision_resampler"](modules["vision"](image)),
        }
    expected = generate(modules, [parts[name] for name in given], PROMPT, 6)
    with load(bundle) as session:
        tokens = list(
            session.pipeline.stream_tokens(
                PROMPT,
                images=[media["image"]] if "image" in given else [],
                sounds=[media["sound"]] if "sound" in given else [],
                max_new_tokens=6,
            )
        )
    assert tokens == expected
    assert len(set(tokens)) > 1


def test_what_is_handed_over_makes_a_difference(modules: dict[str, nn.Module]) -> None:
    nothing = generate(modules, [], PROMPT, 4)
    some = [
        generate(modules, [torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(s))], PROMPT, 4)
        for s in (0, 1)
    ]
    assert len({tuple(one) for one in (nothing, *some)}) == 3


def test_dynamics_are_part_of_the_logits(modules: dict[str, nn.Module]) -> None:
    decoder = cast(Any, modules["llm.prefill"]).decoder
    state = torch.randn(2, 64)
    with torch.no_grad():
        pulled = decoder.dynamics(state)[0]
        expected = nn.functional.linear(decoder.output_norm(pulled), decoder.token_embedding.weight)
        torch.testing.assert_close(decoder.compute_logits(state), expected)
        without = nn.functional.linear(decoder.output_norm(state), decoder.token_embedding.weight)
    assert (expected - without).abs().max() > 1e-2


def test_files_are_told_apart(bundle: Path, media: dict[str, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    np.save(tmp_path / "picture.npy", media["image"])
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.zeros(16000, "<i2").tobytes())
    with load(bundle) as session:
        answer = session.pipeline.answer(
            Request(files=(str(tmp_path / "picture.npy"),), prompts=(PROMPT,), max_new_tokens=3)
        )
        assert answer.header == ("prompt", "answer")
        with pytest.raises(InputError) as caught:
            session.pipeline.answer(Request(files=(str(tmp_path / "long.wav"),), prompts=(PROMPT,)))
        assert "longer than the model hears at once" in str(caught.value)
        with pytest.raises(InputError) as caught:
            session.pipeline.answer(Request(files=(str(tmp_path / "picture.npy"),)))
        assert "takes one prompt" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "input_size: 768, hidden_size: 1024, num_latents: 64",
            "input_size: 512, hidden_size: 1024",
            "vision_resampler.input_size 512 is not vision.hidden_size",
        ),
        (
            "hidden_size: 1024, num_latents: 32",
            "hidden_size: 512, num_latents: 32",
            "audio_resampler.hidden_size 512 is not llm.hidden_size",
        ),
        (
            "dynamics: {beta_max: 2.0}",
            "dynamics: {beta_max: 2.5}",
            "dt * beta_max 2.5 is above 2, where steps can grow without end",
        ),
    ],
)
def test_parts_must_agree(old: str, new: str, words: str) -> None:
    text = (ZOO / "multimodal_llm.yaml").read_text().split("variants:")[0]
    assert text.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace(old, new), source="my.yaml")
    assert words in str(caught.value)
