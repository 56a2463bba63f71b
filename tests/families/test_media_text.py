"""Decoders that read pictures, films and sounds: what is handed over stands before the text or inside it."""

from __future__ import annotations

import io
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from engines.runtime import Request, load
from engines.runtime.media.encode import encode_medium
from engines.runtime.media.film import sample_film
from engines.runtime.media.image import load_image
from engines.runtime.request import Film
from metagen_deploy import pipeline
from specs.errors import InputError, SpecError
from specs.graphs import list_graphs
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.models.text.causal import CausalModel, read_prompt
from specs.parsing.parse import parse_spec
from specs.progress import ignore_progress
from specs.sources import ZOO

NAMES = ("multimodal_llm", "image_captioning", "video_to_text")
PROMPT = "What is it?"
Array = np.ndarray[Any, Any]
Modules = dict[str, GraphModule]


@pytest.fixture(scope="module")
def modules() -> dict[str, dict[str, nn.Module]]:
    """The torch modules of each spec, by graph."""
    specs = {name: load_spec(f"{name}:tiny") for name in NAMES}
    return {name: {graph.name: graph.module for graph in get_handler(spec).build(spec)} for name, spec in specs.items()}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("media")

    def export(name: str) -> Path:
        path = folder / f"{name}.bundle"
        if not path.exists():
            pipeline.export(
                f"{name}:tiny", output=path, targets=("cpu",), precisions=("fp32",), progress=ignore_progress
            )
        return path

    return export


@pytest.fixture(scope="module")
def media() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "picture": random.random((32, 32, 3), np.float32),
        "sound": (0.3 * random.standard_normal(40 * 160)).astype(np.float32),
        "film": random.integers(0, 256, (9, 24, 32, 3), np.uint8),
        "caption": random.random((34, 25, 3), np.float32),
    }


def generate(decoder: CausalModel, parts: list[Tensor], prompt: str, count: int) -> list[int]:
    """Embeddings of what is there, one after the other, and then the text; all computed again for each token."""
    ids = list(prompt.encode())
    made: list[int] = []
    with torch.no_grad():
        while len(made) < count:
            text = decoder.embed(torch.tensor([ids + made], dtype=torch.long))
            hidden = torch.cat([*parts, text], dim=1)
            made.append(int(read_prompt(decoder, hidden, torch.tensor([hidden.shape[1]]))[0].argmax()))
    return made


def take_decoder(modules: dict[str, nn.Module], name: str) -> CausalModel:
    return cast(CausalModel, cast(Any, modules[f"{name}.prefill"]).decoder)


def to_pixels(pictures: Array) -> Tensor:
    """[N, H, W, C] -> [N, C, H, W]."""
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("given", [("sound", "picture"), ("picture",), ("sound",), ()], ids="+".join)
def test_tokens_equal_the_documents_model(
    given: tuple[str, ...],
    bundles: Callable[[str], Path],
    modules: dict[str, dict[str, nn.Module]],
    media: dict[str, Array],
) -> None:
    parts = modules["multimodal_llm"]
    with torch.no_grad():
        made = {
            "sound": parts["audio_resampler"](parts["audio"](torch.from_numpy(media["sound"][None]))),
            "picture": parts["vision_resampler"](parts["vision"](to_pixels(media["picture"][None]))),
        }
    expected = generate(take_decoder(parts, "llm"), [made[name] for name in given], PROMPT, 6)
    with load(bundles("multimodal_llm")) as session:
        handed = [media[name] for name in reversed(given)]  # a sound stands first, in whatever order they come
        tokens = list(session.pipeline.stream_tokens(PROMPT, handed, max_new_tokens=6))
    assert tokens == expected
    assert len(set(tokens)) > 1


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_captions_equal_torch(
    prompt: str, bundles: Callable[[str], Path], modules: dict[str, dict[str, nn.Module]], media: dict[str, Array]
) -> None:
    """A model of captions needs no prompt: it goes on from the picture."""
    parts = modules["image_captioning"]
    with torch.no_grad():
        picture = parts["projector"](parts["vision"](to_pixels(media["caption"][None])))
    expected = generate(take_decoder(parts, "decoder"), [picture], prompt, 6)
    with load(bundles("image_captioning")) as session:
        assert list(session.pipeline.stream_tokens(prompt, [media["caption"]], max_new_tokens=6)) == expected
        with pytest.raises(InputError, match="this bundle does not read sounds"):
            session.pipeline.stream_tokens(prompt, [media["sound"]])
    assert len(set(expected)) > 1


def describe_film(parts: dict[str, nn.Module], frames: Array) -> Tensor:
    """In torch: every frame through the tower, all together through the resampler."""
    with torch.no_grad():
        features = parts["vision"](to_pixels(frames.astype(np.float32) / 255))
        made: Tensor = parts["video_resampler"](features[None])
    return made


def test_a_films_text_equals_torch(
    bundles: Callable[[str], Path], modules: dict[str, dict[str, nn.Module]], media: dict[str, Array], tmp_path: Path
) -> None:
    """Nine frames, of which the model looks at five: 0, 2, 4, 6, 8. The same film in four kinds of file."""
    parts, film = modules["video_to_text"], media["film"]
    seen = describe_film(parts, film[[0, 2, 4, 6, 8]])
    expected = generate(take_decoder(parts, "decoder"), [seen], PROMPT, 6)
    sources = write_films(tmp_path, film)
    with load(bundles("video_to_text")) as session:
        for source in (film, *sources):
            assert list(session.pipeline.stream_tokens(PROMPT, [source], max_new_tokens=6)) == expected, source
        still = describe_film(parts, np.repeat(film[:1], 5, axis=0))
        alone = generate(take_decoder(parts, "decoder"), [still], PROMPT, 6)
        assert list(session.pipeline.stream_tokens(PROMPT, [film[0]], max_new_tokens=6)) == alone
    assert alone != expected


def test_the_order_of_frames_matters(modules: dict[str, dict[str, nn.Module]], media: dict[str, Array]) -> None:
    """Without an embedding of time the resampler would not tell a film from its reverse."""
    parts = modules["video_to_text"]
    there, back = (describe_film(parts, media["film"][order]) for order in (slice(0, 5), slice(4, None, -1)))
    assert (there - back).abs().max() > 1e-3
    resampler = cast(Any, parts["video_resampler"])
    kept = resampler.frame_embedding
    resampler.frame_embedding = nn.Parameter(kept[:1].expand(5, -1))
    there, back = (describe_film(parts, media["film"][order]) for order in (slice(0, 5), slice(4, None, -1)))
    resampler.frame_embedding = kept
    torch.testing.assert_close(there, back, atol=2e-6, rtol=0)


def write_films(folder: Path, film: Array) -> list[Path]:
    """A .npy, a folder whose names sort by number, an animated PNG of ours and one of Pillow's."""
    np.save(folder / "film.npy", film)
    (folder / "frames").mkdir()
    (folder / "frames" / "notes.txt").write_text("no picture")
    for index, frame in enumerate(film, 8):
        Image.fromarray(frame).save(folder / "frames" / f"frame{index}.png")
    made = Film(frames=film.astype(np.float32) / 255, frames_per_second=8)
    (folder / "ours.png").write_bytes(encode_medium(made))
    first, *others = (Image.fromarray(frame) for frame in film)
    first.save(folder / "theirs.apng", format="PNG", save_all=True, append_images=others)
    return [folder / name for name in ("film.npy", "frames", "ours.png", "theirs.apng")]


def test_a_gif_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    film = sample_film(tmp_path / "film.gif", num_frames=4)
    pixels = np.concatenate([load_image(frame, height=6, width=8, channels=3) for frame in film])
    assert pixels.shape == (4, 3, 6, 8)
    assert pixels.mean(axis=(2, 3)).round().tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_grey_frames_are_a_film() -> None:
    frames = np.linspace(0, 1, 6, dtype=np.float32)[:, None, None].repeat(7, 1).repeat(9, 2)
    film = sample_film(frames, num_frames=3)
    pixels = np.concatenate([load_image(frame, height=7, width=9, channels=3) for frame in film])
    np.testing.assert_allclose(pixels.mean(axis=(1, 2, 3)), [0, 0.4, 1], atol=1e-6)


def spoil_nothing(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def spoil_end(path: Path) -> Path:
    stream = io.BytesIO()
    random = np.random.default_rng(0)
    first, *others = (Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)) for _ in range(4))
    first.save(stream, format="PNG", save_all=True, append_images=others)
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) * 2 // 3])
    return path


def spoil_folder(path: Path) -> Path:
    path.mkdir()
    (path / "a.txt").write_text("a")
    return path


def spoil_array(path: Path) -> Path:
    np.save(path.with_suffix(".npy"), np.zeros((0, 4, 4, 3), np.uint8))
    return path.with_suffix(".npy")


def spoil_video(path: Path) -> Path:
    path.write_bytes(b"\x00\x00\x00\x20ftypisom" + b"\x00" * 99)
    return path


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_nothing, "this is no film, or it is damaged"),
        (spoil_end, "this is no film, or it is damaged"),
        (spoil_folder, "the folder holds no pictures"),
        (spoil_array, "the film has no frames"),
        (spoil_video, "video files are not decoded here"),
        (lambda path: path, "the film cannot be read"),
    ],
)
def test_a_film_that_is_none(spoil: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        for frame in sample_film(spoil(tmp_path / "film.png"), num_frames=4):
            load_image(frame, height=4, width=4, channels=3)
    assert words in str(caught.value)
    assert "film" in str(caught.value)


def test_run_prints_a_films_text(bundles: Callable[[str], Path], media: dict[str, Array], tmp_path: Path) -> None:
    path = bundles("video_to_text")
    film = write_films(tmp_path, media["film"])[2]
    with load(path) as session:
        text = "".join(session.pipeline.stream("", [film]))
    command = [sys.executable, "-m", "metagen_deploy", "run", str(path), str(film)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text + "\n"


def test_files_are_told_apart(bundles: Callable[[str], Path], media: dict[str, Array], tmp_path: Path) -> None:
    np.save(tmp_path / "picture.npy", media["picture"])
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.zeros(16000, "<i2").tobytes())
    with load(bundles("multimodal_llm")) as session:
        answer = session.pipeline.answer(
            Request(files=(str(tmp_path / "picture.npy"),), prompts=(PROMPT,), max_new_tokens=3)
        )
        assert answer.header == ("prompt", "answer")
        with pytest.raises(InputError) as caught:
            session.pipeline.answer(Request(files=(str(tmp_path / "long.wav"),), prompts=(PROMPT,)))
        assert "longer than the model hears at once" in str(caught.value)
        with pytest.raises(InputError) as caught:
            session.pipeline.answer(Request(prompts=(PROMPT, PROMPT)))
        assert "this bundle takes sounds or pictures, and one prompt about them" in str(caught.value)


def test_dynamics_are_part_of_the_logits(modules: dict[str, dict[str, nn.Module]]) -> None:
    decoder = cast(Any, take_decoder(modules["multimodal_llm"], "llm"))
    state = torch.randn(2, 64)
    with torch.no_grad():
        pulled = decoder.dynamics(state)[0]
        expected = nn.functional.linear(decoder.output_norm(pulled), decoder.token_embedding.weight)
        torch.testing.assert_close(decoder.compute_logits(state), expected)
        without = nn.functional.linear(decoder.output_norm(state), decoder.token_embedding.weight)
    assert (expected - without).abs().max() > 1e-2


ALL_MEDIA = """
name: all
modality: {inputs: [text, image, audio, video], outputs: [text]}
objective: autoregressive
components:
  eyes: {kind: vision.clip, image_size: 32, patch_size: 16, hidden_size: 48, num_layers: 2, num_heads: 3, pooling: none}
  ears: {kind: audio.whisper, source_positions: 20, num_mels: 16, hidden_size: 32, num_layers: 1, num_heads: 2}
  projector: {kind: fusion.projector, image_token: 500, feature_layers: [1, 2]}
  frames: {kind: fusion.perceiver, num_frames: 3, input_size: 96, hidden_size: 64, num_latents: 6, num_heads: 4}
  audio_resampler: {kind: fusion.perceiver, input_size: 32, hidden_size: 64, num_latents: 4, num_heads: 4}
  llm: {kind: text.gpt2, max_positions: 1024, vocab_size: 512, hidden_size: 64, num_layers: 2, num_heads: 4}
dims: {cache: {min: 16, opt: 64, max: 1024}}
"""


def test_one_decoder_may_read_all_media() -> None:
    """Pictures and films share a tower; the projector's choice of layers is what the films' resampler reads too."""
    spec = parse_spec(ALL_MEDIA, source="all.yaml")
    shapes = {graph.name: (graph.inputs[0].shape, graph.outputs[0].shape) for graph in list_graphs(spec)[:5]}
    assert shapes == {
        "ears": (("batch", 20 * 2 * 160), ("batch", 20, 32)),
        "eyes": (("batch", 3, 32, 32), ("batch", 4, 96)),
        "audio_resampler": (("batch", 20, 32), ("batch", 4, 64)),
        "projector": (("batch", 4, 96), ("batch", 4, 64)),
        "frames": (("batch", 3, 4, 96), ("batch", 6, 64)),
    }
    described = get_handler(spec).describe_pipeline(spec)
    assert [medium["kind"] for medium in described["media"]] == ["sound", "picture", "film"]
    assert described["media_token"] == 500


@pytest.mark.parametrize("missing", ["eyes", "ears", "frames|projector"])
def test_what_looks_and_what_resamples_need_each_other(missing: str) -> None:
    kept = [line for line in ALL_MEDIA.splitlines() if line.split(":")[0].strip() not in missing.split("|")]
    text = "\n".join(kept)
    with pytest.raises(SpecError, match="no model is made of these components"):
        parse_spec(text, source="all.yaml")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        (
            "multimodal_llm",
            "input_size: 768, hidden_size: 1024, num_latents: 64",
            "input_size: 512, hidden_size: 1024",
            "vision_resampler.input_size 512 is not vision.hidden_size",
        ),
        (
            "multimodal_llm",
            "hidden_size: 1024, num_latents: 32",
            "hidden_size: 512, num_latents: 32",
            "audio_resampler.hidden_size 512 is not llm.hidden_size",
        ),
        (
            "multimodal_llm",
            "dynamics: {beta_max: 2.0}",
            "dynamics: {beta_max: 2.5}",
            "dt * beta_max 2.5 is above 2, where steps can grow without end",
        ),
        (
            "video_to_text",
            "media_tokens: {min: 64, opt: 64, max: 64}",
            "media_tokens: {min: 1, opt: 63, max: 63}",
            "what 'video_resampler' makes of one medium is more than a prompt can hold",
        ),
        ("video_to_text", "    pooling: none\n", "", "no model is made of these components"),
        ("image_captioning", "image_token: 151646", "image_token: 152000", "the image token is outside the decoder's"),
    ],
)
def test_parts_must_agree(name: str, old: str, new: str, words: str) -> None:
    text = (ZOO / f"{name}.yaml").read_text().split("variants:")[0]
    assert text.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace(old, new), source="my.yaml")
    assert words in str(caught.value)
