"""Text to video: what looks at what, that the decoder is causal, and the host loop against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import nn

from engines.runtime import Film, Request, load
from metagen_deploy import pipeline
from specs.errors import InputError, SpecError
from specs.handlers import get_handler
from specs.load import load_spec
from specs.models.video.diffusion import VideoDecoder, VideoTransformer
from specs.parsing.parse import parse_spec
from specs.progress import ignore_progress
from specs.sources import ZOO

NAME = "video_generation:tiny"
SPEC = load_spec(NAME)


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    return {graph.name: graph.module for graph in get_handler(SPEC).build(SPEC)}


@pytest.fixture
def transformer(modules: dict[str, nn.Module]) -> VideoTransformer:
    return cast(VideoTransformer, modules["denoiser"])


@pytest.fixture
def decoder(modules: dict[str, nn.Module]) -> VideoDecoder:
    return cast(VideoDecoder, modules["vae"])


def make_sample(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_patches_are_cut_and_joined(transformer: VideoTransformer) -> None:
    sample = make_sample(2)
    cut = transformer.cut(sample)
    assert cut.shape == (2, 3 * 4 * 6, 16)
    assert torch.equal(transformer.join(cut), sample)
    patch = sample[0, :, 1, 2:4, 8:10].flatten()  # frame 1, row 1, column 4
    assert torch.equal(cut[0, 1 * 24 + 1 * 6 + 4], patch)


@pytest.mark.parametrize(("part", "reach"), [("space", "frame"), ("time", "place")])
def test_each_attention_looks_where_it_should(transformer: VideoTransformer, part: str, reach: str) -> None:
    """With the other attention silent, a change of one patch reaches its frame, or its place in all frames."""
    layer = transformer.layers[0]
    other = {"space": "time", "time": "space"}[part]
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        getattr(layer, other).out.weight.zero_()
        x_BTC = torch.randn(1, 72, 48)
        condition, states = torch.randn(1, 9, 48), torch.randn(1, 12, 48)
        changed = x_BTC.clone()
        changed[0, 30] += torch.randn(48)  # frame 1, patch 6
        moved = (layer(x_BTC, condition, states) - layer(changed, condition, states)).abs().amax(-1)[0] > 1e-6
        layer.load_state_dict(kept)
    expected = torch.zeros(3, 24, dtype=torch.bool)
    if reach == "frame":
        expected[1] = True
    else:
        expected[:, 6] = True
    assert torch.equal(moved.reshape(3, 24), expected)


def test_text_time_and_place_matter(transformer: VideoTransformer) -> None:
    sample, states, step = make_sample(), torch.randn(1, 12, 48), torch.tensor([500.0])
    with torch.no_grad():
        out = transformer(sample, step, states)
        assert (out - transformer(sample, step + 100, states)).abs().max() > 1e-3
        assert (out - transformer(sample, step, states.flip(2))).abs().max() > 1e-3
        # frames have positions: a film played backwards is not the film's answer backwards
        assert (out.flip(2) - transformer(sample.flip(2), step, states)).abs().max() > 1e-3


def test_no_frame_sees_a_later_one(decoder: VideoDecoder) -> None:
    latents = make_sample()
    changed = latents.clone()
    changed[:, :, 2] += 1.0
    with torch.no_grad():
        frames, other, first = decoder(latents), decoder(changed), decoder(latents[:, :, :1])
    assert frames.shape == (1, 3, 9, 32, 48)  # 1 + 4 (3 - 1)
    torch.testing.assert_close(frames[:, :, :5], other[:, :, :5])  # of latent frames 0 and 1
    assert (frames[:, :, 5:] - other[:, :, 5:]).abs().amax((1, 3, 4)).min() > 1e-3
    torch.testing.assert_close(frames[:, :, :1], first, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    pipeline.export(NAME, output=folder / "v.bundle", precisions=("fp32",), progress=ignore_progress)
    return folder / "v.bundle"


def test_film_equals_torch(bundle: Path, modules: dict[str, nn.Module]) -> None:
    """The host's loop on numpy against torch with diffusers' scheduler, from the same noise."""
    noise, steps, guidance = make_sample(), 4, 5.0
    with load(bundle) as session:
        context = session.pipeline._context
        (film,) = session.pipeline.generate(["a cat"], steps=steps, guidance_scale=guidance, latents=noise.numpy())
        (other,) = session.pipeline.generate(["a dog"], steps=steps, guidance_scale=guidance, latents=noise.numpy())
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    sample = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        states = modules["text_encoder"](torch.from_numpy(np.stack([context.encode(""), context.encode("a cat")])))
        for timestep in scheduler.timesteps:
            shown = torch.cat([sample, sample])
            nothing, prompt = modules["denoiser"](shown, timestep.float().expand(2), states).chunk(2)
            sample = scheduler.step(nothing + guidance * (prompt - nothing), timestep, sample).prev_sample
        frames = modules["vae"](sample / 0.18215)
    expected = (frames / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 3, 0).numpy()
    assert film.frames.shape == (9, 32, 48, 3)
    assert np.abs(film.frames - expected).max() < 1 / 255
    assert np.abs(film.frames - other.frames).max() > 1 / 255, "the prompt makes no difference"


def test_film_as_arrays_is_the_film_unrounded(bundle: Path, metagen: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("film.npz", "film.PNG"):
        done = metagen("run", bundle, "--prompt", "a cat", "-o", name)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "film.npz", allow_pickle=False) as found:
        frames, rate = found["frames"], found["frames_per_second"]
    with Image.open(tmp_path / "film.PNG") as film:
        shown = []
        for index in range(film.n_frames):
            film.seek(index)
            shown.append(np.asarray(film.convert("RGB")) / 255)
    assert (frames.dtype, frames.shape, rate) == (np.float32, (9, 32, 48, 3), 8)
    assert 0 < np.abs(frames - np.stack(shown)).max() <= 0.5 / 255 + 1e-6


def test_request_is_prompts(bundle: Path) -> None:
    with load(bundle) as session:
        answer = session.pipeline.answer(Request(prompts=("a cat",)))
        assert isinstance(answer.media[0], Film)
        assert answer.rows == (("a cat", (9, 32, 48)),)
        with pytest.raises(InputError):
            session.pipeline.answer(Request())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("context_size: 768", "context_size: 512", "denoiser.context_size 512 is not text_encoder.hidden_size"),
        (
            "block_out_channels: [128",
            "latent_channels: 8\n    block_out_channels: [128",
            "vae.latent_channels 8 is not",
        ),
        ("num_layers: 28", "num_layers: 28\n    patch_size: 3", "patch_size 3 does not divide height 32"),
    ],
)
def test_parts_must_agree(old: str, new: str, words: str) -> None:
    text = (ZOO / "video_generation.yaml").read_text().split("variants:")[0]
    assert text.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace(old, new), source="my.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize("rate", [8, 24])
def test_how_fast_a_film_runs_is_the_spec_s(rate: int) -> None:
    text = (ZOO / "video_generation.yaml").read_text()
    assert text.count("frames_per_second: 8\n") == 1
    spec = parse_spec(text.replace("frames_per_second: 8\n", f"frames_per_second: {rate}\n"), source="my.yaml")
    assert get_handler(spec).describe_pipeline(spec)["frames_per_second"] == rate
