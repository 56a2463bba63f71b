"""Resizing and frame sampling inside an exported graph: against torch, against Pillow, at sizes tracing never saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn import functional

from engines.runtime.media.film import load_frames
from engines.runtime.media.image import load_image
from specs.components import PictureComponent, VisionTransformerComponent
from specs.errors import InputError, SpecError
from specs.load import load_spec
from specs.models.fusion.encoders import ENCODERS
from specs.models.vision import raw_pixels as pixels
from specs.models.vision.raw_pixels import FrameSampler, RawPixels
from specs.parsing.parse import parse_spec
from specs.schema import Spec
from tests.families.fusion_support import TEXT, build_graph, export_graph

#: Raw height and width, then the model's: shrunk, enlarged, both at once, equal, one pixel, primes.
SIZES = [
    (120, 160, 56, 56), (50, 37, 64, 96), (64, 64, 64, 64), (1, 1, 16, 16), (7, 400, 33, 9), (300, 200, 299, 201),
    (13, 17, 8, 8),
]  # fmt: skip

#: float32 against float64 torch, as a share of white: 6e-7 measured at 300 to 299 pixels, less elsewhere.
TORCH_LIMIT = 2e-6
#: Pillow rounds to 8 bits between the two ways and after them: half a level each, the first of them spread by the
#: second way's weights, which add up to 1.25 (bicubic) and 1.54 (lanczos) where their signs are left away.
PILLOW_LEVELS = {"bilinear": 1.01, "hamming": 1.01, "bicubic": 1.13, "lanczos": 1.28}
#: float64 against float32 of any filter, as a share of white: 1.6e-6 measured (hamming, 1920 pixels).
ROUNDING_LIMIT = 4e-6


def make_config(height: int, width: int, **steps: Any) -> PictureComponent:
    given: dict[str, Any] = {"preprocessing": steps} if steps else {}
    return VisionTransformerComponent(
        kind="vision.vit", preprocess="graph", image_size=(height, width), patch_size=1, hidden_size=2, num_layers=1,
        num_heads=1, **given,
    )  # fmt: skip


def make_picture(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng([height, width])
    ramp = np.linspace(0, 155, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
    return (ramp + random.integers(0, 100, (height, width, 3))).astype(np.uint8)


def resize_with_torch(picture: np.ndarray, height: int, width: int, mode: str = "bilinear") -> np.ndarray:
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255
    return functional.interpolate(image, size=(height, width), mode=mode, antialias=True)[0].numpy()


def resize_in_graph(picture: np.ndarray, config: PictureComponent, dtype: torch.dtype = torch.float32) -> np.ndarray:
    return RawPixels(config)(torch.from_numpy(picture)[None], dtype)[0].numpy()


def measure_error(height: int, width: int, target_height: int, target_width: int) -> float:
    picture = make_picture(height, width)
    ours = resize_in_graph(picture, make_config(target_height, target_width))
    return float(np.abs(ours - resize_with_torch(picture, target_height, target_width)).max())


@pytest.mark.parametrize("sizes", SIZES)
def test_resizing_equals_torch(sizes: tuple[int, int, int, int]) -> None:
    assert measure_error(*sizes) < TORCH_LIMIT


def skip_antialiasing(source: int, target: int, resized: torch.Tensor, **_: object) -> torch.Tensor:
    centre = (torch.arange(target, dtype=resized.dtype)[:, None] + 0.5) * source / target - 0.5
    weights = (1 - (torch.arange(source, dtype=resized.dtype) - centre).abs()).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def align_corners(source: int, target: int, resized: torch.Tensor, **_: object) -> torch.Tensor:
    centre = torch.arange(target, dtype=resized.dtype)[:, None] * (source - 1) / (target - 1)
    weights = (1 - (torch.arange(source, dtype=resized.dtype) - centre).abs() / (source / target)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("mutant", [skip_antialiasing, align_corners])
def test_another_filter_would_be_noticed(mutant: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "make_resize_matrix", mutant)
    assert measure_error(120, 160, 56, 56) > 100 * TORCH_LIMIT


#: What image processors do: to one size; the shortest edge, larger and smaller than the crop; a crop alone.
WAYS: list[dict[str, Any]] = [
    {"resize": "stretch", "size": (56, 48)},
    {"resize": "shortest_edge", "size": 64, "crop": (56, 48)},
    {"resize": "shortest_edge", "size": 50, "crop": (56, 48)},
    {"resize": "none", "crop": (56, 48)},
]


@pytest.mark.parametrize("resample", ["bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("way", WAYS, ids=["stretch", "cut", "framed", "as it is"])
def test_a_graph_does_what_a_host_does(way: dict[str, Any], resample: str) -> None:
    """Within the host's own rounding to 8 bits, for pictures of any proportions: a single pixel, long, odd."""
    steps = {**way, "resample": resample}
    config = make_config(56, 48, **steps)
    for height, width in ((120, 160), (300, 90), (33, 500), (1, 1), (7, 400), (56, 48), (1080, 1920), (3, 2)):
        picture = make_picture(height, width)
        ours = resize_in_graph(picture, config)
        host = load_image(picture, height=56, width=48, channels=3, steps=steps)[0]
        assert np.abs(ours - host).max() * 255 <= PILLOW_LEVELS[resample], (height, width)
        assert np.abs(ours - resize_in_graph(picture, config, torch.float64)).max() < ROUNDING_LIMIT, (height, width)


def test_half_a_pixel_beside_the_host_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the crop begins and where the shortest edge ends are whole pixels."""
    steps = {"resize": "shortest_edge", "size": 64, "resample": "bicubic", "crop": (56, 48)}
    picture = make_picture(97, 131)
    host = load_image(picture, height=56, width=48, channels=3, steps=steps)[0]
    config = make_config(56, 48, **steps)
    exact = pixels.measure_resized
    monkeypatch.setattr(pixels, "measure_resized", lambda *given: [side + 1 for side in exact(*given)])
    assert np.abs(resize_in_graph(picture, config) - host).max() * 255 > 10


def test_bicubic_is_torchs_but_for_the_cut() -> None:
    picture = make_picture(120, 160)
    ours = resize_in_graph(picture, make_config(56, 48, resize="stretch", size=(56, 48), resample="bicubic"))
    theirs = resize_with_torch(picture, 56, 48, "bicubic").clip(0, 1)
    assert np.abs(ours - theirs).max() < 1e-3, "torch cuts once, after both ways"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({"size": 32, "resample": "nearest"}, "preprocess graph cannot resample 'nearest'"),
        ({"size": 32, "resample": "box"}, "bilinear, hamming, bicubic or lanczos, or preprocess host"),
        ({"resize": "shortest_edge", "size": 32}, "leaves the other side open: add crop: [32, 32]"),
        ({"size": 30}, "preprocessing ends in 30 by 30 pixels, and image_size is 32 by 32"),
        ({"resize": "none", "crop": [30, 32]}, "preprocessing ends in 30 by 32 pixels, and image_size is 32 by 32"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(steps: dict[str, Any], words: str) -> None:
    text = f"""
name: seen
modality: {{inputs: [image], outputs: [label]}}
architecture: cnn
objective: classification
components:
  classifier:
    kind: vision.resnet
    image_size: 32
    num_classes: 3
    preprocess: graph
    preprocessing: {json.dumps(steps)}
"""
    with pytest.raises(SpecError) as caught:
        parse_spec(text, source="seen.yaml")
    assert words in str(caught.value)
    assert "where:   seen.yaml:1" in str(caught.value)
    parse_spec(text.replace("preprocess: graph", "preprocess: host"), source="seen.yaml")


RAW = load_spec("multimodal_sensor_fusion:tiny")


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    """The shipped spec's camera: uint8 of any size -> tokens."""
    return export_graph(RAW, build_graph(RAW, "camera"), tmp_path_factory.mktemp("camera"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (97, 128), (128, 31), (32, 32)])
def test_the_exported_graph_resizes_any_size(camera: onnxruntime.InferenceSession, height: int, width: int) -> None:
    """What the tower makes of torch's own resize is what the graph makes of raw pixels."""
    picture = make_picture(height, width)
    tower = build_graph(RAW, "camera").module.inner
    with torch.inference_mode():
        expected = tower(torch.from_numpy(resize_with_torch(picture, 32, 32)).float()[None])[0].numpy()
    made = camera.run(None, {"pixels": picture[None]})[0][0]
    assert np.abs(made - expected).max() < 1e-4 * float(np.sqrt((expected**2).mean())) + 20 * TORCH_LIMIT


@pytest.mark.parametrize(("have", "wanted"), [(1, 4), (3, 4), (4, 4), (16, 4), (30, 8), (7, 3), (64, 1)])
def test_frames_are_sampled_evenly(have: int, wanted: int) -> None:
    """The frame under the middle of each of `wanted` equal parts."""
    frames = torch.arange(have)[None, :, None, None, None].expand(2, have, 1, 1, 1)
    sampled = FrameSampler(wanted)(frames)[0, :, 0, 0, 0].tolist()
    assert sampled == [int((i + 0.5) * have / wanted) for i in range(wanted)]


FILM = "kind: video.frames, image_size: 16, patch_size: 8, hidden_size: 24, num_layers: 1, num_heads: 2"


def make_film_spec(options: str) -> Spec:
    text = TEXT.replace("STRATEGY", "late").replace(", OPTIONS", "").replace("image, text", "video, text")
    picture = (
        "kind: vision.vit, image_size: 16, patch_size: 8, hidden_size: 24, num_layers: 1, num_heads: 2, pooling: none"
    )
    assert text.count(picture) == 1
    small = "steps: {min: 1, opt: 24, max: 64}, height: {min: 1, opt: 20, max: 64}, width: {min: 1, opt: 20, max: 64}"
    text = text.replace("steps: {min: 1, opt: 24, max: 64}", small)
    return parse_spec(text.replace(picture, f"{FILM}, {options}"), source="film.yaml")


@pytest.mark.parametrize("frames", [2, 9])
def test_a_film_is_sampled_resized_and_windowed_in_the_graph(frames: int, tmp_path: Path) -> None:
    """Against numpy's sampling, torch's resize, the tower frame by frame, and means over windows by hand."""
    spec = make_film_spec("num_frames: 6, window_size: 3, window_stride: 2")
    graph = build_graph(spec, "picture")
    film = np.stack([make_picture(21 + 0 * f, 33) // (f + 1) for f in range(frames)])
    made = export_graph(spec, graph, tmp_path).run(None, {"frames": film[None]})[0][0]
    chosen = [int((i + 0.5) * frames / 6) for i in range(6)]
    images = np.stack([resize_with_torch(film[i], 16, 16) for i in chosen])
    encoder = graph.module
    assert isinstance(encoder, ENCODERS["video.frames"])
    with torch.inference_mode():
        embedding = encoder.tower(torch.from_numpy(images).float()).numpy()
        positions = encoder.position_embedding.numpy()
    expected = np.stack([embedding[start : start + 3].mean(axis=0) for start in (0, 2)]) + positions
    assert made.shape == (2, 24)
    assert np.abs(made - expected).max() < 2e-4
    swapped = np.stack([embedding[start : start + 3].mean(axis=0) for start in (0, 3)]) + positions
    assert np.abs(made - swapped).max() > 1e-2, "windows with another stride would be noticed"


def test_frames_are_handed_over_as_they_are(tmp_path: Path) -> None:
    """An array, a folder of pictures and a GIF of few colours are the same frames; mixed sizes are refused."""
    film = np.stack([np.full((6, 9, 3), level, np.uint8) for level in (0, 255, 128)])
    for number, frame in enumerate(film):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    pictures = [Image.fromarray(frame) for frame in film]
    pictures[0].save(tmp_path / "film.gif", save_all=True, append_images=pictures[1:], duration=50)
    for source in (film, tmp_path / "frames", tmp_path / "film.gif"):
        assert np.array_equal(load_frames(source, channels=3), film)
    Image.fromarray(film[0][:4]).save(tmp_path / "frames" / "9.png")
    with pytest.raises(InputError) as caught:
        load_frames(tmp_path / "frames", channels=3)
    assert "6 by 9, 4 by 9" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("preprocess: host", "video.frames samples and resizes in the graph"),
        ("num_frames: 2, window_size: 3", "window_size 3 is more than num_frames 2"),
        ("pooling: none", "each frame becomes one embedding"),
        ("num_frames: 0", "1 or more"),
        ("preprocessing: {resize: none}", "resize 'none' needs a crop"),
    ],
)
def test_films_that_cannot_be_are_refused(options: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_film_spec(options)
    assert words in str(caught.value)
