"""Towers that take raw pixels, in every family: exported, compiled, and against the same tower behind a host's resize.

Which resizes there are and how exact they are: test_raw_pixels.py. Host loops: test_raw_pictures.py of the runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from engines.building.bundle import build_bundle
from engines.checking.parity import check_bundle
from engines.runtime import load
from engines.runtime.media.image import load_image
from exporters.export import export_spec
from specs.components import PictureComponent
from specs.graphs import list_graphs
from specs.handlers import get_handler
from specs.load import load_spec
from specs.models.vision.raw_pixels import RawTower
from specs.parsing.parse import parse_spec
from specs.progress import ignore_progress
from specs.schema import Dim, Spec
from specs.targets import load_target
from tests.families.fusion_support import build_graph, export_graph
from tests.families.test_raw_pixels import make_picture
from tests.zoo.whole_path import RTX, set_precision

CUT = {"resize": "shortest_edge", "size": 52, "resample": "bicubic", "crop": [48, 40]}
SIDES = {"height": Dim(min=1, opt=40, max=200), "width": Dim(min=1, opt=50, max=200)}

#: A tower of each kind: convolutions, both, and transformers, by the steps that their libraries take.
TOWERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vision.resnet": ("layer_type: basic, hidden_sizes: [8, 12], depths: [1, 1], embedding_size: 6", "cnn", CUT),
    "vision.mobilevit": (
        "neck_hidden_sizes: [8, 8, 8, 8, 8, 8, 16], hidden_sizes: [8, 8, 8], num_heads: 2, channel_order: bgr",
        "hybrid",
        {"resize": "stretch", "size": [48, 40], "resample": "hamming"},
    ),
    "vision.clip": ("patch_size: 8, hidden_size: 32, num_layers: 1, num_heads: 2", "transformer", CUT),
    "vision.siglip": (
        "patch_size: 8, hidden_size: 32, num_layers: 1, num_heads: 2",
        "transformer",
        {"resize": "stretch", "size": [48, 40], "resample": "lanczos"},
    ),
}


def make_tower_spec(kind: str, preprocess: str = "graph") -> Spec:
    sizes, architecture, steps = TOWERS[kind]
    text = f"""
name: seen
modality: {{inputs: [image], outputs: [embedding]}}
architecture: {architecture}
objective: contrastive
components:
  tower: {{kind: {kind}, image_size: [48, 40], preprocess: {preprocess}, {sizes}, preprocessing: {steps}}}
dims: {{batch: {{min: 1, opt: 2, max: 4}}}}
calibration: {{samples: 4}}
"""
    spec = parse_spec(text.replace("'", ""), source="seen.yaml")
    return spec.model_copy(update={"dims": {**spec.dims, **SIDES}}) if preprocess == "graph" else spec


@pytest.mark.parametrize("kind", ["vision.resnet", "vision.siglip"])
def test_a_tower_takes_raw_pixels_to_engines(kind: str, tmp_path: Path) -> None:
    """fp16 and int8 for ONNX Runtime, TensorRT 8 and TensorRT-RTX, all against torch; then the real compiler."""
    targets = [load_target(name) for name in ("cpu", "h200@trt8.6", RTX)]
    export_spec(make_tower_spec(kind), tmp_path, targets=targets, precisions=("fp16", "int8"), progress=ignore_progress)
    report = check_bundle(tmp_path, progress=ignore_progress)
    assert report.passed, "\n".join(f"{row.stage}: {row.reason}" for row in report.rows if not row.passed)
    assert len(report.rows) == 2 * (1 + 2 * len(targets)), "two outputs of the portable and of each typed graph"
    assert len(build_bundle(tmp_path, target=RTX, progress=ignore_progress).rows) == 2


#: Of their outputs' rms: 0.011 (clip) and 0.0002 (mobilevit) measured. It is the host's rounding to 8 bits.
HOST_LIMIT = 0.03


@pytest.mark.parametrize("kind", ["vision.clip", "vision.mobilevit"])
def test_a_picture_is_seen_as_behind_a_host(kind: str, tmp_path: Path) -> None:
    """The exported graph and the same tower behind Pillow's resize, at sizes that tracing never saw."""
    spec, behind = make_tower_spec(kind), make_tower_spec(kind, "host")
    session = export_graph(spec, build_graph(spec, "tower"), tmp_path)
    tower = build_graph(behind, "tower").module
    for height, width in ((40, 50), (199, 33), (1, 1), (60, 200)):
        picture = make_picture(height, width)
        image = load_image(picture, height=48, width=40, channels=3, steps=TOWERS[kind][2])
        with torch.inference_mode():
            expected = tower(torch.from_numpy(image))[0].numpy()
        made = session.run(None, {"pixels": np.stack([picture, picture])})[0]
        rms = float(np.sqrt((expected**2).mean()))
        assert np.abs(made - expected).max() < HOST_LIMIT * rms, (height, width)
        np.testing.assert_array_equal(made[0], made[1])


def test_a_graph_of_the_models_own_size_resizes_nothing(tmp_path: Path) -> None:
    spec = load_spec("image_vit_base:tiny")
    spec = make_raw(spec, "classifier", {"resize": "none"})
    graph = build_graph(spec, "classifier")
    assert graph.inputs[0].shape == ("batch", 32, 32, 3)
    assert "height" not in get_known_dims(spec)
    session = export_graph(spec, graph, tmp_path)
    picture = make_picture(32, 32)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = cast(RawTower, graph.module).inner(image).numpy()
    np.testing.assert_allclose(session.run(None, {"pixels": picture[None]})[0], expected, atol=1e-5)


def get_known_dims(spec: Spec) -> set[str]:
    return {
        size for graph in list_graphs(spec) for tensor in graph.inputs for size in tensor.shape if type(size) is str
    }


def make_raw(spec: Spec, name: str, steps: dict[str, Any] | None = None) -> Spec:
    """A shipped spec whose tower `name` takes raw pixels."""
    config = cast(PictureComponent, spec.components[name])
    given = {
        **config.model_dump(exclude_none=True),
        "preprocess": "graph",
        **({"preprocessing": steps} if steps else {}),
    }
    made = type(config).model_validate(given)
    dims = {**spec.dims, **(SIDES if made.graph_steps.takes_any_size else {})}
    return spec.model_copy(update={"components": {**spec.components, name: made}, "dims": dims})


@pytest.mark.parametrize(
    ("name", "tower"),
    [("image_captioning", "vision"), ("multimodal_llm", "vision"), ("video_to_text", "vision"),
     ("multimodal_clip", "image_encoder")],
)  # fmt: skip
def test_every_family_takes_them(name: str, tower: str) -> None:
    """The torch graph is the tower behind the resize, with its parameters under the same names."""
    behind = load_spec(f"{name}:tiny")
    spec = make_raw(behind, tower)
    raw, host = build_graph(spec, tower), build_graph(behind, tower)
    assert [tensor.name for tensor in raw.inputs] == ["pixels"]
    assert ("raw", "raw values and their positions are beyond what float16 counts to") in raw.keep_float32
    config = cast(PictureComponent, spec.components[tower])
    picture = make_picture(37, 61)
    height, width = config.image
    image = load_image(picture, height=height, width=width, channels=3)
    with torch.inference_mode():
        torch.testing.assert_close(
            raw.module(torch.from_numpy(picture)[None]), host.module(torch.from_numpy(image)), atol=2e-5, rtol=1e-5
        )
    modules = get_handler(spec).make_components(spec), get_handler(behind).make_components(behind)
    assert [sorted(one[tower].state_dict()) for one in modules][0] == sorted(modules[1][tower].state_dict())


def test_a_film_of_raw_frames_is_described(tmp_path: Path) -> None:
    """Frames of one size are rows of one call; the text is that of the bundle whose host resizes."""
    spec = set_precision(make_raw(load_spec("video_to_text:tiny"), "vision"), "fp32")
    export_spec(spec, tmp_path, targets=[], precisions=(), progress=ignore_progress)
    film = np.stack([make_picture(30, 44) // (frame + 1) for frame in range(7)])
    with load(tmp_path) as session:
        embedded = session.pipeline.embed([film])[0]
        assert len("".join(session.pipeline.stream("what?", [film], max_new_tokens=4))) > 0
        tower = session.graphs["vision"].graph.inputs[0]
    assert (tower.name, tower.dtype) == ("pixels", "uint8")
    modules = {graph.name: graph.module for graph in get_handler(spec).build(load_spec("video_to_text:tiny"))}
    chosen = [int(index) for index in np.linspace(0, 6, 5)]
    images = np.concatenate([load_image(film[index], height=24, width=32, channels=3) for index in chosen])
    with torch.inference_mode():
        expected = modules["video_resampler"](modules["vision"](torch.from_numpy(images))[None])[0].numpy()
    np.testing.assert_allclose(embedded, expected, atol=2e-5)
