"""Towers of other families as encoders of a fusion: convolutions, BERT, wav2vec 2.0; against torch, and missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from engines.building.bundle import build_bundle
from engines.checking.parity import check_bundle
from engines.runtime import Session, load
from engines.runtime.media.image import load_image
from exporters.export import export_spec
from specs.errors import InputError, SpecError
from specs.handlers import get_handler
from specs.models.audio.wav2vec2 import Wav2Vec2
from specs.models.fusion.multimodal import MultimodalFusion
from specs.models.text.bert import Bert
from specs.parsing.parse import parse_spec
from specs.progress import ignore_progress
from specs.targets import load_target
from tests.families.test_raw_pixels import make_picture, resize_with_torch
from tests.zoo.whole_path import RTX

TEXT = """
name: towers
modality: {inputs: [image, text, audio], outputs: [label]}
objective: classification
components:
  near:
    {kind: vision.resnet, image_size: [32, 24], preprocess: graph, layer_type: basic, embedding_size: 6,
     hidden_sizes: [8, 12], depths: [1, 1]}
  far:
    {kind: vision.mobilevit, image_size: 32, neck_hidden_sizes: [8, 8, 8, 8, 8, 8, 16], hidden_sizes: [8, 8, 8],
     num_heads: 2}
  words:
    {kind: text.bert, vocab_size: 300, context_length: 9, hidden_size: 20, num_layers: 1, num_heads: 2, mlp_size: 24,
     pooling: none}
  title:
    {kind: text.bert, vocab_size: 300, context_length: 7, hidden_size: 16, num_layers: 1, num_heads: 2, mlp_size: 24}
  voice:
    {kind: audio.wav2vec2, vocab_size: 5, num_samples: 400, conv_sizes: [8, 8], conv_kernels: [10, 4],
     conv_strides: [5, 4], hidden_size: 16, num_layers: 1, num_heads: 2, position_kernel: 4, position_groups: 2,
     mask_padding: true, feature_norm: layer}
  fusion: {kind: fusion.multimodal, strategy: middle, hidden_size: 18, num_layers: 1, num_heads: 3, num_classes: 4}
dims:
  batch: {min: 1, opt: 2, max: 4}
  height: {min: 1, opt: 30, max: 80}
  width: {min: 1, opt: 40, max: 80}
calibration: {samples: 4}
"""
SPEC = parse_spec(TEXT, source="towers.yaml")
SOUND = (0.4 * np.sin(np.arange(400) / 7)).astype(np.float32)
PICTURE = make_picture(41, 67)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    targets = [load_target("cpu"), load_target(RTX)]
    export_spec(SPEC, folder, targets=targets, precisions=("fp16", "int8"), progress=ignore_progress)
    return folder


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return load(bundle, precision="fp32")


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    """The torch graphs, before the wrapping: components by name."""
    built = {graph.name: graph.module for graph in get_handler(SPEC).build(SPEC)}
    towers = {"near": "inner", "words": "encoder", "title": "encoder", "voice": "encoder", "far": "tower"}
    found = {name: getattr(built[name], attribute) for name, attribute in towers.items()}
    return {**found, "near": found["near"].tower, "fusion": built["fusion"]}


def test_every_graph_to_every_precision(bundle: Path) -> None:
    """Against torch in ONNX Runtime; then TensorRT-RTX compiles each of them twice."""
    report = check_bundle(bundle, progress=ignore_progress)
    assert report.passed, "\n".join(f"{row.stage}: {row.reason}" for row in report.rows if not row.passed)
    assert len(build_bundle(bundle, target=RTX, progress=ignore_progress).rows) == 2 * len(SPEC.components)


def compute_tokens(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """What each tower makes of one sample, alone and without padding, by its own public forward."""
    with torch.inference_mode():
        _, near = modules["near"](torch.from_numpy(resize_with_torch(PICTURE, 32, 24)).float()[None])
        _, far = modules["far"](torch.from_numpy(load_image(PICTURE, height=32, width=32, channels=3)))
        words, title = cast(Bert, modules["words"]), cast(Bert, modules["title"])
        ids = [torch.tensor([list(text.encode())]) for text in ("go on", "stop")]
        lengths = [torch.tensor([one.shape[1]]) for one in ids]
        assert title.embedding_head is not None
        pooled = title.embedding_head(title(ids[1], lengths[1]), lengths[1])
        voice = cast(Wav2Vec2, modules["voice"])
        states = voice.encode(torch.from_numpy(SOUND[:311])[None], torch.tensor([311]))
    return {
        "near": near.flatten(2).transpose(1, 2)[0],
        "far": far.flatten(2).transpose(1, 2)[0],
        "words": words(ids[0], lengths[0])[0].detach(),
        "title": pooled,
        "voice": states[0],
    }


ROW: dict[str, Any] = {"near": PICTURE, "far": PICTURE, "words": "go on", "title": "stop", "voice": SOUND[:311]}


def test_tokens_are_the_towers_own(session: Session, modules: dict[str, nn.Module]) -> None:
    """Padding is not seen: a short text or sound has the tokens that it has alone, and says how many."""
    expected = compute_tokens(modules)
    for name, modality in session.pipeline.modalities.items():
        found = modality.encode([ROW[name]])
        count = len(expected[name])
        if f"{name}_lengths" in found:
            assert found[f"{name}_lengths"].tolist() == [count], name
        else:
            assert found[f"{name}_tokens"].shape[1] == count, name
        np.testing.assert_allclose(found[f"{name}_tokens"][0, :count], expected[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("missing", ["near", "far", "words", "title", "voice"])
def test_what_is_missing_has_no_influence(missing: str, session: Session, modules: dict[str, nn.Module]) -> None:
    """A row without a modality equals torch's fusion over the others, whatever stands in its place."""
    row = {name: source for name, source in ROW.items() if name != missing}
    found = session.pipeline.fuse([row, ROW])["logits"]
    tokens = compute_tokens(modules)
    fusion = cast(MultimodalFusion, modules["fusion"])
    feed: list[torch.Tensor] = []
    for stream in fusion.streams:
        whole = torch.full((1, stream.tokens, stream.width), torch.nan)
        if stream.name != missing:
            whole[0, : len(tokens[stream.name])] = tokens[stream.name]
        feed += [whole] + ([torch.tensor([len(tokens[stream.name])])] if stream.has_lengths else [])
    presence = torch.tensor([[stream.name != missing for stream in fusion.streams]])
    with torch.inference_mode():
        expected = fusion(*feed, presence)[0][0].numpy()
    np.testing.assert_allclose(found[0], expected, atol=3e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4, "what is there has influence"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (", num_samples: 400", "", "'voice' hears sounds of any length, and a fusion needs the longest"),
        ("num_samples: 400", "num_samples: 9", "num_samples 9 is less than one frame, 25 samples"),
        ("depths: [1, 1]}", "depths: [1, 1], num_classes: 3}", "'near' ends in classes, and a fusion needs features"),
    ],
)
def test_what_cannot_be_fused_is_refused(old: str, new: str, words: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse_spec(TEXT.replace(old, new), source="towers.yaml")
    assert words in str(caught.value)


def test_a_text_or_sound_that_is_too_long_is_refused(session: Session) -> None:
    for row, words in (({"words": "a" * 10}, "too many tokens"), ({"voice": np.zeros(401)}, "longer than the model")):
        with pytest.raises(InputError) as caught:
            session.pipeline.fuse([row])
        assert words in str(caught.value)
        assert "9 and the end" not in str(caught.value)
