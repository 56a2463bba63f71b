"""The shipped fusion of sensors as a host drives it: any subset of files, mixed batches, weights as pictures."""

from __future__ import annotations

import itertools
import subprocess
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from engines.runtime import Request, Session, load
from engines.runtime.media.heat_map import draw_heat_map
from engines.runtime.media.image import load_pixels
from engines.runtime.media.sound import load_sound
from engines.runtime.pipelines.multimodal_fusion import MultimodalFusion
from metagen_deploy import pipeline
from specs.bundle.files import read_manifest
from specs.errors import InputError
from specs.handlers import get_handler
from specs.load import dump_spec, load_spec
from specs.progress import ignore_progress

NAME = "multimodal_sensor_fusion:tiny"
SPEC = load_spec(NAME)
ALL = ("camera", "microphone", "instruction", "lidar", "imu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle in fp32, and one with a precision a modality; and files to hand over."""
    folder = tmp_path_factory.mktemp("robot")
    for name, precision in (("fp32", {"default": "fp32"}), ("mixed", {"default": "fp16", "camera": "int8"})):
        source = folder / f"{name}.yaml"
        source.write_text(dump_spec(SPEC.model_copy(update={"precision": precision})), encoding="utf-8")
        output = folder / f"{name}.bundle"
        pipeline.export(str(source), output=output, targets=("cpu",), progress=ignore_progress)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / "picture.png")
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((9000 * np.sin(np.arange(5000) / 9)).astype("<i2").tobytes())
    np.save(folder / "scan.npy", 10 * random.standard_normal((100, 4)))
    np.savetxt(
        folder / "imu.csv", random.standard_normal((70, 6)), delimiter=",", header="ax,ay,az,gx,gy,gz", comments=""
    )
    return folder


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[Session]:
    with load(folder / "fp32.bundle") as opened:
        yield opened


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    return {graph.name: graph.module for graph in get_handler(SPEC).build(SPEC)}


def get_files(folder: Path) -> dict[str, str]:
    files = {"camera": "picture.png", "microphone": "sound.wav", "lidar": "scan.npy", "imu": "imu.csv"}
    return {name: str(folder / file) for name, file in files.items()} | {"instruction": "go on"}


def run_torch(modules: dict[str, nn.Module], folder: Path, present: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Logits of one row, each encoder called with what the file holds, without padding."""
    files = get_files(folder)
    samples = np.zeros((1, 6400), np.float32)
    sound = load_sound(files["microphone"], sample_rate=16000)
    samples[0, : len(sound)] = sound
    ids = np.zeros((1, 16), np.int64)
    ids[0, :6] = [*b"go on", 511]
    scan, imu = np.load(files["lidar"]), np.loadtxt(files["imu"], delimiter=",", skiprows=1)
    given = {
        "camera": (load_pixels(files["camera"], channels=3),),
        "microphone": (samples,),
        "instruction": (ids,),
        "lidar": (scan[None].astype(np.float32), np.array([100])),
        "imu": (imu[None].astype(np.float32), np.array([70])),
    }
    tensors = []
    with torch.inference_mode():
        for name in ALL:
            made = modules[name](*map(torch.from_numpy, given[name]))
            tensors += list(made) if isinstance(made, tuple) else [made]
        presence = torch.tensor([[name in present for name in ALL]])
        return cast(np.ndarray[Any, Any], modules["fusion"](*tensors, presence)[0].numpy()[0])


@pytest.mark.parametrize("present", [ALL, *itertools.combinations(ALL, 1), ("camera", "imu"), ALL[1:4]], ids="+".join)
def test_any_subset_is_what_torch_says(
    present: tuple[str, ...], session: Session, modules: dict[str, nn.Module], folder: Path
) -> None:
    host = cast(MultimodalFusion, session.pipeline)
    logits = host.fuse([{name: get_files(folder)[name] for name in present}])["logits"][0]
    expected = run_torch(modules, folder, present)
    rms = float(np.sqrt((expected**2).mean()))
    assert np.abs(logits - expected).max() < 1e-4 * rms
    others = run_torch(modules, folder, tuple(name for name in ALL if name not in present) or ALL[:1])
    assert np.abs(logits - others).max() > 1e-2 * rms, "another subset would be noticed"


def test_a_mixed_batch_is_its_rows(session: Session, folder: Path) -> None:
    """Pictures of two sizes, sensors of different lengths, and more rows than the graph takes at once."""
    host, files = cast(MultimodalFusion, session.pipeline), get_files(folder)
    random = np.random.default_rng(1)
    rows: list[dict[str, Any]] = [
        {name: files[name] for name in ALL},
        {"camera": random.integers(0, 256, (33, 20, 3), dtype=np.uint8), "imu": random.random((9, 6))},
        {"lidar": random.random((1, 4), np.float32)},
        {"instruction": "stop"},
        {"imu": random.random((128, 6)), "lidar": random.random((256, 4))},
    ]
    together = host.fuse(rows)
    for index, row in enumerate(rows):
        alone = host.fuse([row])
        for name, value in alone.items():
            assert np.abs(together[name][index] - value[0]).max() < 1e-5


@pytest.mark.parametrize(("bundle", "precision"), [("fp32", "fp32"), ("mixed", "fp16")])
def test_nothing_leaks_out_of_typed_graphs(bundle: str, precision: str, folder: Path) -> None:
    with load(folder / f"{bundle}.bundle") as opened:
        graph = opened.graphs["fusion"]
        assert graph.choice.precision == precision
        golden = dict(np.load(folder / f"{bundle}.bundle" / "fusion" / "model.golden.npz"))
        feed = {name.removeprefix("input:"): value for name, value in golden.items() if name.startswith("input:")}
        feed["presence"] = np.array([[True, False, True, False, True], [False] * 4 + [True]] * 2)[
            : len(feed["presence"])
        ]
        clean = graph.run(feed)
        for garbage in (np.nan, np.inf, 3e38):
            spoiled = {name: value.copy() for name, value in feed.items()}
            for column, name in enumerate(ALL):
                spoiled[f"{name}_tokens"][~feed["presence"][:, column]] = garbage
            dirty = graph.run(spoiled)
            assert all(np.array_equal(dirty[name], clean[name]) for name in clean)


def test_each_modality_has_its_own_precision(folder: Path) -> None:
    """`precision: {default: fp16, camera: int8}`, seen in the nodes of the graphs."""
    manifest = read_manifest(folder / "mixed.bundle")
    asked = {graph.name: [typed.precision for typed in graph.typed] for graph in manifest.graphs}
    assert asked == {name: ["int8" if name == "camera" else "fp16"] for name in (*ALL, "fusion")}
    for graph in manifest.graphs:
        model = onnx.load(folder / "mixed.bundle" / graph.typed[0].file, load_external_data=False)
        ops = {node.op_type for node in model.graph.node}
        quantised = ops & {"QuantizeLinear", "DynamicQuantizeMatMul"}
        assert bool(quantised) == (graph.name == "camera"), f"{graph.name}: {ops}"
        kinds = {weight.data_type for weight in model.graph.initializer}
        assert (onnx.TensorProto.FLOAT16 in kinds) == (graph.name != "camera"), graph.name


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(), ["nothing was handed over", *ALL, "metagen-deploy run BUNDLE"]),
        (Request(files=("a.wav", "b.wav")), ["two things are handed over for 'microphone'", "a.wav, b.wav"]),
        (Request(files=("cloud.npy",)), ["several modalities could take cloud.npy", "lidar", "imu", "--input lidar="]),
        (Request(prompts=("a", "b")), ["two things are handed over for 'instruction'"]),
        (Request(named=(("radar", "x.npy"),)), ["no modality 'radar'", "camera"]),
        (Request(named=(("lidar", "x.ply"),)), ["holds no values", "modality 'lidar', x.ply", ".npy, .csv, .npz"]),
        (Request(named=(("lidar", "{imu}"),)), ["this is no 'points'", "float64 [70, 6]", "float32 [points, 4]"]),
        (Request(named=(("camera", "{sound}"),)), ["modality 'camera'", "this is no picture"]),
    ],
)
def test_what_does_not_go_is_refused(request_: Request, words: list[str], session: Session, folder: Path) -> None:
    places = {"{imu}": folder / "imu.csv", "{sound}": folder / "sound.wav"}
    named = tuple((name, str(places.get(file, file))) for name, file in request_.named)
    with pytest.raises(InputError) as caught:
        session.pipeline.answer(Request(files=request_.files, prompts=request_.prompts, named=named))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_present_sensor_that_says_nan_is_refused(value: float, session: Session) -> None:
    scan = np.ones((5, 4), np.float32)
    scan[2, 1] = value
    with pytest.raises(InputError) as caught:
        cast(MultimodalFusion, session.pipeline).fuse([{"lidar": scan}])
    assert "'points' holds NaN or infinity" in str(caught.value)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_command_line_takes_any_files(folder: Path, metagen: Run, tmp_path: Path) -> None:
    """Two sensors are told apart by what is in their files; each present modality's weights become a picture."""
    files = [folder / name for name in ("picture.png", "sound.wav", "scan.npy", "imu.csv")]
    done = metagen("run", folder / "fp32.bundle", *files, "--prompt", "go on", "-o", "weights.png")
    assert done.returncode == 0, done.stderr
    assert "probability" in done.stdout
    assert len(list(tmp_path.glob("weights-*.png"))) == 5
    done = metagen("run", folder / "fp32.bundle", "--input", f"lidar={folder / 'scan.npy'}", "-o", "one.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.png").is_file()
    done = metagen("run", folder / "fp32.bundle", "--input", f"radar={folder / 'scan.npy'}")
    assert done.returncode == 1
    assert "neither a modality nor a tensor 'radar'" in done.stderr
    done = metagen("run", folder / "fp32.bundle")
    assert done.returncode == 1
    assert "nothing was handed over" in done.stderr and "lidar (a .npy or .csv)" in done.stderr


def test_a_heat_map_shows_the_largest_weight_brightest() -> None:
    """Dark violet is 0, yellow the largest; blocks stand apart; cells are where the table has them."""
    weights = np.zeros((3, 5))
    weights[2, 3], weights[0, 0] = 0.5, 0.25
    pixels = draw_heat_map(weights, rows=[("a", 3)], columns=[("b", 3), ("c", 2)], title="t").pixels
    yellow = np.abs(pixels - np.array([253, 231, 37]) / 255).max(axis=-1) < 1e-3
    green = np.abs(pixels - np.array([33, 144, 141]) / 255).max(axis=-1) < 1e-3
    tall, across = np.argwhere(yellow), np.argwhere(green)
    in_table = tall[tall[:, 0] < 44 + 3 * 48]
    assert len(in_table) == 48 * 48
    assert (in_table[0][0] - across[0][0], in_table[0][1] - across[0][1]) == (2 * 48, 3 * 48 + 2)
