"""Pictures and labels: pixels equal to the library's own processors, and whole bundles that look at a picture."""

from __future__ import annotations

import builtins
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from engines.runtime import Request, answer, load
from engines.runtime.media.image import load_image
from engines.runtime.media.picture_steps import apply_steps
from engines.runtime.media.resample import RESAMPLES, resize_like_pillow
from engines.runtime.pipelines import ImageEmbedding, ImageTextSimilarity
from exporters.checkpoints import read_spec
from specs.errors import CheckpointError, InputError
from specs.handlers.shared.towers import describe_image
from tests.checkpoints.compare import enliven, export
from tests.checkpoints.support import Array, edit_config

VISION = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = (ViTImageProcessorPil, hf.ViTModel, hf.ViTConfig)
CLIP = (CLIPImageProcessorPil, hf.CLIPVisionModel, hf.CLIPVisionConfig)
SIGLIP = (SiglipImageProcessorPil, hf.SiglipVisionModel, hf.SiglipVisionConfig)
DARK = {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 1.1], "image_std": [1.0, 0.5, 0.7]}
#: processor, model, config; what the processor's file says
PROCESSORS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "ViT": (*VIT, {"size": {"height": 24, "width": 16}}),
    "ViT, nearest, old size": (*VIT, {"size": 16, "resample": 0}),
    "ViT, lanczos": (*VIT, {"size": 16, "resample": 1, "do_normalize": False}),
    "ViT, other scale": (*VIT, {"size": 16, **DARK}),
    "ViT, not rescaled": (*VIT, {"size": 16, "do_rescale": False}),
    "CLIP": (*CLIP, {"size": {"shortest_edge": 19}, "crop_size": 16}),
    "CLIP, a crop larger than the picture": (*CLIP, {"size": 9, "crop_size": {"height": 16, "width": 16}}),
    "CLIP, no resize": (*CLIP, {"do_resize": False, "crop_size": 16}),
    "SigLIP": (*SIGLIP, {"size": {"height": 16, "width": 16}}),
}


def make_picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Noise over a gradient, with hard edges."""
    random = np.random.default_rng(height * width)
    channels = len(mode)
    ramp = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    pixels = (ramp + random.integers(0, 90, (height, width, channels))).clip(0, 255).astype(np.uint8)
    pixels[height // 3 : height // 2, ::3] = 255
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def write_checkpoint(name: str, folder: Path) -> Any:
    make_processor, make_model, make_config, options = PROCESSORS[name]
    size = options.get("size")
    image = [size["height"], size["width"]] if name == "ViT" else 16
    make_model(make_config(**VISION, image_size=image, patch_size=8)).save_pretrained(folder)
    processor = make_processor(**options)
    processor.save_pretrained(folder)
    return processor


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processor_s(name: str, tmp_path: Path) -> None:
    processor = write_checkpoint(name, tmp_path)
    config: Any = read_spec(tmp_path).components["encoder"]
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (config.image_mean, config.image_std))
    for height, width, mode in ((37, 53, "RGB"), (64, 20, "RGB"), (16, 16, "RGB"), (30, 41, "L"), (33, 21, "RGBA")):
        picture = make_picture(height, width, mode)
        if mode != "RGB" and "ViT" in name:
            continue  # its processor takes nothing else
        wanted = processor(picture, return_tensors="np")["pixel_values"]
        picture.save(tmp_path / "x.png")
        for source in (tmp_path / "x.png", np.asarray(picture)):
            got = load_image(source, **describe_image(config))
            np.testing.assert_allclose(
                (got.astype(np.float64) - mean) / std, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max()
            )
            if "scale" not in name and "normalize" not in PROCESSORS[name][3]:
                steps = (got * 255).round() / 255
                np.testing.assert_allclose(got, steps, rtol=0, atol=1e-7)  # 8 bits, as the processor's


def test_values_are_the_library_s_to_the_last_bit(tmp_path: Path) -> None:
    processor = write_checkpoint("ViT, lanczos", tmp_path)
    config: Any = read_spec(tmp_path).components["encoder"]
    picture = make_picture(41, 29)
    wanted = processor(picture, return_tensors="np")["pixel_values"].astype(np.float32)
    assert np.array_equal(load_image(np.asarray(picture), **describe_image(config)), wanted)


@pytest.mark.parametrize("key", ["do_rescale", "do_normalize", "do_center_crop", "do_resize"])
def test_a_step_of_null_is_left_out(key: str, tmp_path: Path) -> None:
    """As the library reads it; a step that is missing in the file is the family's own."""
    write_checkpoint("CLIP, a crop larger than the picture" if key != "do_center_crop" else "SigLIP", tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: None}))
    config: Any = read_spec(tmp_path).components["encoder"]
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path)
    picture = make_picture(37, 53)
    wanted = processor(picture, return_tensors="np")["pixel_values"]
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (config.image_mean, config.image_std))
    got = load_image(np.asarray(picture), **describe_image(config)).astype(np.float64)
    np.testing.assert_allclose((got - mean) / std, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("resample", RESAMPLES)
def test_resize_equals_pillow(resample: str) -> None:
    random = np.random.default_rng(7)
    for _ in range(60):
        height, width, to_height, to_width = (int(one) for one in random.integers(1, 90, 4))
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        code = getattr(Image.Resampling, resample.upper())
        wanted = np.asarray(Image.fromarray(pixels).resize((to_width, to_height), code)).astype(int)
        got = resize_like_pillow(pixels, height=to_height, width=to_width, resample=resample)
        assert np.abs(got - wanted).max() <= (1 if resample == "hamming" else 0)  # a cosine's last bit


def test_resize_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.asarray(make_picture(50, 33))
    steps = {"resize": "shortest_edge", "size": 20, "resample": "bicubic", "crop": [18, 24]}
    wanted = apply_steps(pixels, steps)
    find = importlib.import_module

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert np.array_equal(apply_steps(pixels, steps), wanted)
    assert wanted.shape == (18, 24, 3)
    assert not wanted[:, :2].any(), "black where the picture does not reach"
    assert builtins.all(wanted[:, 2:22].any(axis=(0, 2)))


def test_a_picture_with_other_proportions_is_refused(tmp_path: Path) -> None:
    hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size=16, do_center_crop=False).save_pretrained(tmp_path)
    config: Any = read_spec(tmp_path).components["encoder"]
    assert load_image(np.asarray(make_picture(30, 30)), **describe_image(config)).shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="size that the model takes"):
        load_image(np.asarray(make_picture(30, 40)), **describe_image(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_processor_type": "LevitImageProcessor"}, "'LevitImageProcessor' is not implemented"),
        ({"do_pad": True}, "'do_pad' is True"),
        ({"size": {"height": 20, "width": 16}}, "another size than the model takes"),
        ({"size": {"longest_edge": 16}}, "this way of resizing is not implemented"),
        ({"resample": 9}, "'resample' is 9"),
        ({"rescale_factor": 0.0}, "'rescale_factor' in the checkpoint's config is not above 0"),
        ({"image_mean": [0.5, 0.5]}, "image_mean needs 1 or num_channels=3"),
        ({"image_std": "half"}, "'image_std' is not a list of numbers"),
    ],
)
def test_bad_processors(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_checkpoint("ViT, nearest, old size", tmp_path)
    edit_config(tmp_path, "preprocessor_config.json", **change)
    with pytest.raises(CheckpointError) as caught:
        read_spec(tmp_path)
    assert words in str(caught.value)


def test_processors_of_whole_models_lie_in_another_file(tmp_path: Path) -> None:
    write_checkpoint("ViT, nearest, old size", tmp_path)
    wanted = read_spec(tmp_path).components
    path = tmp_path / "preprocessor_config.json"
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    assert read_spec(tmp_path).components == wanted


def write_clip_tokenizer(folder: Path) -> None:
    """Letters and their ends, as CLIP's vocabulary begins."""
    letters = "abcdefghijklmnopqrstuvwxyz ."
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole CLIP with its tokenizer and processor: in fp32, fp16 and int8, and for TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    text = {**VISION, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59, "bos_token_id": 58}
    config = hf.CLIPConfig(
        text_config=text, vision_config={**VISION, "image_size": 16, "patch_size": 8}, projection_dim=10
    )
    enliven(hf.CLIPModel(config), scale=1.5).save_pretrained(folder)
    CLIPImageProcessorPil(size=18, crop_size=16).save_pretrained(folder)
    write_clip_tokenizer(folder)
    bundle = folder.with_suffix(".bundle")
    return folder, export(folder, bundle, precisions=("fp32", "fp16", "int8"), targets=("cpu", "rtx-4090"))


def test_texts_for_a_picture(clip: tuple[Path, Path], tmp_path: Path) -> None:
    """`run PICTURE --prompt ...`: the probabilities of the library's own zero-shot classification."""
    folder, bundle = clip
    picture = make_picture(40, 27)
    picture.save(tmp_path / "x.png")
    texts = ("a cat", "dog. cat", "z")
    with load(bundle) as session:
        assert isinstance(session.pipeline, ImageTextSimilarity)
        found = answer(session, Request(files=(str(tmp_path / "x.png"),), prompts=texts))
        similarity = session.pipeline.compare([tmp_path / "x.png"], texts)
        ids = np.stack([session.pipeline.tokenize(text) for text in texts])
    assert ids[0].tolist()[:4] == [58, 28, 57, 59]
    model = hf.CLIPModel.from_pretrained(folder).eval()
    pixels = torch.from_numpy(CLIPImageProcessorPil.from_pretrained(folder)(picture)["pixel_values"][0])[None]
    with torch.no_grad():
        logits = model(pixel_values=pixels, input_ids=torch.from_numpy(ids)).logits_per_image[0].numpy()
    np.testing.assert_allclose(similarity[0], logits, atol=2e-4)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    wanted = {text: float(share) for text, share in zip(texts, shares, strict=True)}
    for _, text, probability in found.rows:
        assert probability == pytest.approx(wanted[str(text)], abs=1e-4)


def test_pictures_to_vectors_and_labels(tmp_path: Path) -> None:
    """Towers alone: a tower's vector, and a classifier's labels by their names."""
    folder = tmp_path / "vit"
    config = hf.ViTConfig(**VISION, image_size=(24, 16), patch_size=8)
    config.id2label = {0: "cat", 1: "dog", 2: "neither"}
    model = enliven(hf.ViTForImageClassification(config), scale=1.5)
    model.save_pretrained(folder)  # type: ignore[operator]
    ViTImageProcessorPil(size={"height": 24, "width": 16}).save_pretrained(folder)
    picture = make_picture(50, 40)
    picture.save(tmp_path / "x.png")
    with load(export(folder, tmp_path / "vit.bundle", precisions=("fp32",))) as session:
        found = answer(session, Request(files=(str(tmp_path / "x.png"),)))
    pixels = torch.from_numpy(ViTImageProcessorPil.from_pretrained(folder)(picture)["pixel_values"][0])[None]
    with torch.no_grad():
        shares = model(pixel_values=pixels).logits.softmax(-1)[0]
    best = int(shares.argmax())
    assert found.rows[0][1] == ("cat", "dog", "neither")[best]
    assert found.rows[0][2] == pytest.approx(float(shares[best]), abs=1e-5)


def test_an_encoder_s_vectors(tmp_path: Path) -> None:
    processor = write_checkpoint("SigLIP", tmp_path / "model")
    pictures = [make_picture(50, 40), make_picture(20, 70)]
    arrays: list[Array] = [np.asarray(picture) for picture in pictures]
    with load(export(tmp_path / "model", tmp_path / "x.bundle", precisions=("fp32",))) as session:
        assert isinstance(session.pipeline, ImageEmbedding)
        vectors = session.pipeline.encode(arrays)
    model = hf.SiglipVisionModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        wanted = model(pixel_values=torch.from_numpy(np.stack(processor(pictures)["pixel_values"]))).pooler_output
    np.testing.assert_allclose(vectors, wanted.numpy(), atol=1e-5)
