"""Schedulers and whole pipelines of diffusers: ours equal theirs to their own rounding."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from engines.runtime import load
from engines.runtime.pipelines.stages.schedulers import SCHEDULERS
from engines.runtime.pipelines.text_to_image import TextToImage
from exporters.checkpoints import read_spec
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.parts.scheduler import read_scheduler
from exporters.checkpoints.tokenizers.clip import make_clip_tokenizer
from specs.errors import CheckpointError
from specs.schema import Dim
from tests.checkpoints.compare import Array, compare, export
from tests.checkpoints.tiny_diffusion import (
    CONTEXT,
    draw,
    make_pipeline,
)

STEPS = 6

#: diffusers hands a torch tensor to numpy in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULES = [
    (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    (diffusers.DDIMScheduler, {"clip_sample_range": 1.5, "timestep_spacing": "trailing"}),
    (diffusers.DDIMScheduler, {"timestep_spacing": "linspace", "prediction_type": "v_prediction"}),
    (diffusers.DDIMScheduler, {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}),
    (diffusers.EulerDiscreteScheduler, {}),
    (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "leading", "prediction_type": "v_prediction"}),
    (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "trailing", "prediction_type": "sample"}),
    (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True, "beta_schedule": "linear"}),
    (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    (diffusers.PNDMScheduler, {"skip_prk_steps": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}),
    (diffusers.PNDMScheduler, {"skip_prk_steps": True, "prediction_type": "v_prediction"}),
]


@pytest.mark.parametrize(("kind", "options"), SCHEDULES)
@pytest.mark.parametrize("steps", [7, 30])
def test_scheduler(kind: type[Any], options: dict[str, Any], steps: int, tmp_path: Path) -> None:
    """Tables equal diffusers' bit by bit; a whole run differs by rounding alone."""
    defaults = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    theirs = kind(**{**defaults, **options})
    theirs.save_pretrained(tmp_path)
    config = read_scheduler(Config(json.loads((tmp_path / "scheduler_config.json").read_text()), "config"))
    ours = SCHEDULERS[config["method"]](config, steps)
    theirs.set_timesteps(steps)
    assert np.array_equal(theirs.alphas_cumprod.numpy(), ours.alphas)
    exact = not options.get("use_karras_sigmas")  # whose logarithms differ in the last bit
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), atol=0 if exact else 1e-4)
    np.testing.assert_allclose(ours.start_scale, float(theirs.init_noise_sigma), rtol=3e-7)
    sample = draw(1, 4, 5, 6) * float(theirs.init_noise_sigma)
    mine = sample.numpy()
    for index, timestep in enumerate(theirs.timesteps):
        shown, seen = theirs.scale_model_input(sample, timestep), ours.scale_input(mine, index)
        np.testing.assert_allclose(seen, shown.numpy(), rtol=1e-3, atol=1e-4)
        output = torch.tanh(shown * (1 + index / 10)) * 1.3
        sample, mine = theirs.step(output, timestep, sample).prev_sample, ours.step(output.numpy(), index, mine)
    assert mine.dtype == np.float32
    assert np.abs(mine - sample.numpy()).max() < 1e-4 * np.abs(sample.numpy()).max()


@pytest.fixture(scope="module", params=[False, True], ids=["StableDiffusion", "SDXL"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    folder = tmp_path_factory.mktemp("pipeline")
    made = make_pipeline(folder / "vocabulary", large=request.param)
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder / "tree")
    # one of the two with a range of sizes, one with a single size that is no square
    fixed = {"height": Dim(min=8, opt=8, max=8), "width": Dim(min=12, opt=12, max=12)} if request.param else {}
    return made, folder / "tree", export(folder / "tree", folder / "x.bundle", precisions=("fp32",), dims=fixed)


def run_pipeline(made: Any, noise: Array, prompts: list[str], dtype: torch.dtype, output: str, **options: Any) -> Array:
    made = copy.copy(made)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(made, part, None) is not None:
            setattr(made, part, copy.deepcopy(getattr(made, part)).to(dtype))
    size = {"height": 2 * noise.shape[2], "width": 2 * noise.shape[3]}
    with torch.no_grad():
        return np.asarray(
            made(
                prompts,
                latents=torch.from_numpy(noise).to(dtype),
                num_inference_steps=STEPS,
                output_type=output,
                **size,
                **options,
            ).images
        )


def test_pipeline(pipeline: tuple[Any, Path, Path]) -> None:
    """The whole loop from the same noise, on a picture that is no square: tokens, latents, pixels."""
    made, _, bundle = pipeline
    case = type(made).__name__
    prompts, noise = ["The cat of  at, 7 Dogs!", "a"], draw(2, 4, 8, 12).numpy()
    with load(bundle) as session:
        ours = session.pipeline
        assert isinstance(ours, TextToImage)
        for encoder, tokenizer in zip(
            ours._encoders, (made.tokenizer, getattr(made, "tokenizer_2", None)), strict=False
        ):
            wanted = tokenizer(prompts, padding="max_length", max_length=CONTEXT, truncation=True).input_ids
            assert [encoder.context.encode(prompt).tolist() for prompt in prompts] == wanted
        texts = ours.encode(prompts)
        texts = ours._encode_absence(texts, None, len(prompts)).join(texts)
        latents = ours.denoise(noise, texts, ours.schedule.begin(STEPS), ours.schedule.guidance_scale)
        pictures = ours.generate(prompts, latents=noise, steps=STEPS)
        other = ours.generate(prompts, latents=noise, steps=STEPS, guidance_scale=1.0, negative_prompt="x")
    double = run_pipeline(made, noise, prompts, torch.float64, "latent")
    single = run_pipeline(made, noise, prompts, torch.float32, "latent")
    compare(case, f"{STEPS} steps", "onnx", "latents", latents, single, double)
    assert np.abs(pictures - run_pipeline(made, noise, prompts, torch.float32, "np")).max() < 1 / 255
    alone = run_pipeline(made, noise, prompts, torch.float32, "np", guidance_scale=1.0)
    assert np.abs(other - alone).max() < 1 / 255
    assert np.abs(other - pictures).max() > 0.01, "guidance changes nothing, and would prove nothing"


def test_negative_prompt(pipeline: tuple[Any, Path, Path]) -> None:
    made, _, bundle = pipeline
    noise = draw(1, 4, 8, 12).numpy()
    with load(bundle) as session:
        assert isinstance(session.pipeline, TextToImage)
        ours = session.pipeline.generate(["a"], negative_prompt="of", latents=noise, steps=STEPS)
        again = [session.pipeline.generate(["a"], steps=2, seed=seed, height=16, width=24) for seed in (1, 1, 2)]
    theirs = run_pipeline(made, noise, ["a"], torch.float32, "np", negative_prompt=["of"])
    assert np.abs(ours - theirs).max() < 1 / 255
    assert again[0].shape == (1, 16, 24, 3)
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_tokenizer_of_an_old_tree(pipeline: tuple[Any, Path, Path]) -> None:
    """vocab.json and merges.txt alone make the tokenizer that the library makes of them."""
    made, tree, _ = pipeline
    vocabulary = tree.parent / "vocabulary" / "one" / "vocab.json"
    ours = Tokenizer.from_str(json.dumps(make_clip_tokenizer(vocabulary)))
    for text in ("", "The CAT of the at", "don't  ünïcode\t12 345 !?", "<|endoftext|> of"):
        assert ours.encode(text).ids == made.tokenizer(text).input_ids


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "'text_encoder' is not implemented"),
        ("model_index.json", {"unet": None}, "'unet' is not implemented"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "'_class_name' is 'LCMScheduler'"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "'latents_mean' is"),
        ("unet/config.json", {"cross_attention_dim": 40}, "contradicts itself: cross_attention_size does not fit"),
    ],
)
def test_a_pipeline_that_is_not_implemented(
    pipeline: tuple[Any, Path, Path], part: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tree = shutil.copytree(pipeline[1], tmp_path / "tree")
    path = tree / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        read_spec(tree)
