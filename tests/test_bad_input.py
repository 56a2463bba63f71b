"""Bad input through the real command line: the whole message, the exit status, and nothing left behind.

Rows are (what is wrong, how it is made, what is said). Messages are compared in full: where, what was got, what is
allowed and what to do are the interface. Damaged bundles are in `test_bad_bundles.py`, what
a machine refuses is in `test_bad_machine.py`.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from metagen_deploy.cli import run_command
from specs.components import COMPONENTS
from specs.load import ZOO
from specs.targets import list_targets
from tests.refusals import HAS_COMPILER, make_model, refuse
from tests.small_bundles import make_decoder_weights, write_classifier, write_decoder

TARGETS = ", ".join(sorted(target.name for target in list_targets()))

Capture = pytest.CaptureFixture[str]


# --- specs -----------------------------------------------------------------------------------------------------------

SPEC = """\
name: mine
modality: {inputs: [image], outputs: [label]}
objective: classification
components:
  classifier:
    kind: vision.vit
    image_size: 8
    patch_size: 2
    num_channels: 1
    hidden_size: 96
    num_layers: 4
    num_heads: 3
    num_classes: 10
dims:
  batch: {min: 1, opt: 8, max: 64}
precision: {default: fp32}
targets: [cpu]
"""

SPECS = {
    "unknown key": (
        ("hidden_size", "hiden_size"),
        (
            "unknown key 'hiden_size' in components.classifier\n"
            "  where:   s.yaml:10\n"
            f"  allowed: {', '.join(sorted(COMPONENTS['vision.vit'].model_fields))} (did you mean 'hidden_size'?)\n"
            "  fix:     rename the key to one of these, or remove it"
        ),
    ),
    "unknown op": (
        ("vision.vit", "vision.vitt"),
        (
            "component 'classifier' has the unknown kind 'vision.vitt'\n"
            "  where:   s.yaml:6\n"
            f"  allowed: {', '.join(sorted(COMPONENTS))} (did you mean 'vision.vit'?)\n"
            "  fix:     set kind to one of these"
        ),
    ),
    "unknown target": (
        ("targets: [cpu]", "targets: [cpuu]"),
        (
            "unknown target 'cpuu'\n"
            "  where:   s.yaml:17\n"
            f"  allowed: {TARGETS} (did you mean 'cpu'?)\n"
            "  fix:     see them all: metagen-deploy targets"
        ),
    ),
    "wrong type": (
        ("num_heads: 3", "num_heads: three"),
        (
            "components.classifier.num_heads cannot be the text 'three'\n"
            "  where:   s.yaml:12\n"
            "  allowed: a whole number\n"
            "  fix:     correct components.classifier.num_heads"
        ),
    ),
    "heads that do not divide": (
        ("num_heads: 3", "num_heads: 5"),
        (
            "components.classifier: num_heads 5 does not divide hidden_size 96; nearest that do: 2, 3, 4, 6, 8\n"
            "  where:   s.yaml:12\n"
            "  fix:     change one of the values"
        ),
    ),
    "min above max": (
        ("min: 1, opt: 8, max: 64", "min: 9, opt: 8, max: 4"),
        (
            "dims.batch: needs min <= opt <= max, got min 9, opt 8, max 4\n"
            "  where:   s.yaml:15\n"
            "  fix:     change one of the values"
        ),
    ),
    "tag": (
        ("name: mine", "name: !!python/object/apply:os.system ['touch pwned']"),
        (
            "tags are not taken: 'tag:yaml.org,2002:python/object/apply:os.system'\n"
            "  where:   s.yaml:1\n"
            "  fix:     remove the tag; values are plain YAML"
        ),
    ),
    "missing weights": (
        ("dims:", "weights: {source: gone.safetensors}\ndims:"),
        (
            "the file that weights.source names does not exist\n"
            "  where:   {here}/gone.safetensors\n"
            "  got:     gone.safetensors\n"
            "  fix:     correct weights.source; it is relative to the spec's own folder"
        ),
    ),
    "weights outside the zoo": (
        ("dims:", "weights: {source: 'zoo:../../x.safetensors'}\ndims:"),
        "'zoo:../../x.safetensors' leaves the folder of the shipped specs\n  fix:     give a path of your own",
    ),
}


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("verb", ["show", "export"])
def test_specs(case: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    (old, new), message = SPECS[case]
    assert SPEC.count(old) == 1
    (tmp_path / "s.yaml").write_text(SPEC.replace(old, new))
    refuse([verb, "s.yaml", *(["-o", "x.bundle"] if verb == "export" else [])], message, capsys)


# --- weights ---------------------------------------------------------------------------------------------------------

BIAS = "classifier.layers.0.attention.out.bias"
Tensors = dict[str, torch.Tensor]


def save_weights(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensors = load_file(ZOO / "weights/image_vit_digits.safetensors")
        change(tensors)
        save_file(tensors, path)

    return write


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: None,
        "the file given with --weights does not exist\n  where:   {here}/w.safetensors\n  fix:     correct the path",
    ),
    "a folder": (
        lambda path: path.mkdir(),
        (
            "the file given with --weights is a folder\n  where:   {here}/w.safetensors\n"
            "  allowed: a folder with config.json or model_index.json\n  fix:     correct the path"
        ),
    ),
    "truncated": (
        lambda path: path.write_bytes((ZOO / "weights/image_vit_digits.safetensors").read_bytes()[:-1000]),
        (
            "the weights file is truncated, or is not safetensors\n"
            "  where:   {here}/w.safetensors\n"
            "  got:     Error while deserializing header: incomplete metadata, file not fully covered\n"
            "  fix:     copy or download it again, or convert it again"
        ),
    ),
    "wrong shape": (
        save_weights(lambda tensors: tensors.update({BIAS: torch.zeros(7)})),
        (
            f"'{BIAS}' has the wrong shape\n"
            f"  where:   tensor '{BIAS}' of {{here}}/w.safetensors\n"
            "  got:     [7]\n"
            "  allowed: [96], by the spec's sizes\n"
            "  fix:     correct the spec's sizes, or use the weights that belong to it"
        ),
    ),
    "extra tensors": (
        save_weights(lambda tensors: tensors.update(extra=torch.zeros(7))),
        (
            "the weights file has 1 tensors that the model does not; the first is 'extra'\n"
            "  where:   {here}/w.safetensors\n"
            "  got:     57 tensors\n"
            "  allowed: 56 tensors\n"
            "  fix:     remove them from the file, or correct the spec's sizes"
        ),
    ),
    "missing tensors": (
        save_weights(lambda tensors: tensors.pop(BIAS)),
        (
            f"the weights file lacks 1 of 56 tensors; the first is '{BIAS}'\n"
            "  where:   {here}/w.safetensors\n"
            "  fix:     use weights of this spec's sizes, named <component>.<parameter>"
        ),
    ),
    "NaN": (
        save_weights(lambda tensors: tensors[BIAS].fill_(float("nan"))),
        (
            f"'{BIAS}' holds NaN or infinity\n"
            f"  where:   tensor '{BIAS}' of {{here}}/w.safetensors\n"
            "  got:     96 of 96 values are not finite\n"
            "  fix:     train or convert again; these weights give no answers"
        ),
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = WEIGHTS[case]
    write(tmp_path / "w.safetensors")
    refuse(["export", "image_vit_digits", "-o", "new/x.bundle", "--weights", "w.safetensors"], message, capsys)


def test_pickled_weights_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refuse(
        ["export", "image_vit_digits", "-o", "x.bundle", "--weights", "w.pt"],
        "weights in .pt files are pickles, which can run code, and are not read\n"
        "  where:   the command line\n"
        "  allowed: .safetensors\n"
        "  fix:     convert once: safetensors.torch.save_file("
        "torch.load(FILE, weights_only=True), 'model.safetensors')",
        capsys,
    )


# --- calibration -----------------------------------------------------------------------------------------------------

AGAIN = "write it again: numpy.savez_compressed(FILE, NAME_OF_THE_INPUT=array)"
CALIBRATION: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "the data file does not exist\n  where:   c.npz\n  fix:     correct its path"),
    "not an archive": (
        lambda path: path.write_text("x"),
        (
            "the data file is truncated, or is not a .npz of plain arrays\n"
            "  where:   c.npz\n"
            "  got:     this is no archive of named arrays\n"
            f"  fix:     {AGAIN}"
        ),
    ),
    "pickled": (
        lambda path: np.savez(path, x=np.array([{}], object)),
        (
            "the data file is truncated, or is not a .npz of plain arrays\n"
            "  where:   c.npz\n"
            "  got:     Object arrays cannot be loaded when allow_pickle=False\n"
            f"  fix:     {AGAIN}"
        ),
    ),
    "no such input": (
        lambda path: np.savez(path, y=np.zeros((4, 32), np.float32)),
        (
            "the data has no array 'x'\n"
            "  where:   c.npz\n"
            "  got:     y\n"
            "  allowed: x\n"
            "  fix:     save the arrays under the names of the graph's inputs"
        ),
    ),
    "NaN": (
        lambda path: np.savez(path, x=np.full((4, 32), np.nan, np.float32)),
        (
            "array 'x' holds NaN or infinity\n  where:   c.npz\n  got:     128 values\n"
            "  allowed: finite values\n  fix:     remove these samples"
        ),
    ),
    "wrong shape": (
        lambda path: np.savez(path, x=np.zeros((4, 31), np.float32)),
        (
            "array 'x' has the wrong shape\n"
            "  where:   c.npz\n"
            "  got:     [4, 31]\n"
            "  allowed: [batch, 32] with samples along its first axis, or [samples, batch, 32]; batch 1 to 16\n"
            "  fix:     reshape or resize the samples"
        ),
    ),
    "empty": (
        lambda path: np.savez(path, x=np.zeros((0, 32), np.float32)),
        (
            "array 'x' has too few samples\n"
            "  where:   c.npz\n"
            "  got:     0\n"
            "  allowed: 1 or more: the first axis of the graph's input is batch\n"
            "  fix:     save more samples"
        ),
    ),
}


@pytest.mark.parametrize("case", CALIBRATION)
def test_calibration(case: str, here: Path, capsys: Capture) -> None:
    write, message = CALIBRATION[case]
    write(here / "c.npz")
    arguments = ["export", "net.onnx", "-o", "x.bundle", "--calibration", "c.npz", "--precision", "int8"]
    refuse(arguments, message, capsys)


# --- ONNX files ------------------------------------------------------------------------------------------------------


def save_external(location: str) -> Callable[[Path], None]:
    """A model whose weights claim to lie at `location`."""

    def write(path: Path) -> None:
        model = make_model()
        onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
        light = onnx.load(path, load_external_data=False)
        entry = next(e for e in light.graph.initializer[0].external_data if e.key == "location")
        entry.value = location
        path.write_bytes(light.SerializeToString())

    return write


def save_link(path: Path) -> None:
    save_external("link.data")(path)
    (path.parent / "link.data").symlink_to("/etc/hostname")


NOT_ONNX = "the file is not ONNX, or it was truncated\n  where:   m.onnx\n  got:     {...}\n  fix:     export it again"
OUTSIDE = "the data of 'w' lies outside the model's folder\n  where:   m.onnx\n  got:     '%s'"
ONNX_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such ONNX file\n  where:   m.onnx"),
    "empty": (
        lambda path: path.touch(),
        "the ONNX file is empty\n  where:   m.onnx\n  fix:     copy or export it again",
    ),
    "truncated": (lambda path: path.write_bytes(make_model().SerializeToString()[:-200]), NOT_ONNX),
    "not ONNX": (lambda path: path.write_text("hello\n" * 99), NOT_ONNX),
    "old opset": (
        lambda path: onnx.save(make_model(5), path),
        (
            f"opset 5 is not supported\n"
            "  where:   m.onnx\n"
            f"  allowed: opset 7 to {onnx.defs.onnx_opset_version()}\n"
            "  fix:     export the model again, or convert it with onnx.version_converter"
        ),
    ),
    "new opset": (
        lambda path: onnx.save(make_model(99), path),
        (
            f"opset 99 is not supported\n"
            "  where:   m.onnx\n"
            f"  allowed: opset 7 to {onnx.defs.onnx_opset_version()}\n"
            "  fix:     export the model again, or convert it with onnx.version_converter"
        ),
    ),
    "data above": (save_external("../w.data"), OUTSIDE % "../w.data"),
    "data elsewhere": (save_external("/etc/hostname"), OUTSIDE % "/etc/hostname"),
    "data behind a link": (save_link, OUTSIDE % "link.data"),
    "data missing": (
        save_external("gone.data"),
        "the file with the data of 'w' is missing\n  where:   gone.data\n  fix:     copy it beside the .onnx file",
    ),
}


@pytest.mark.parametrize("case", ONNX_FILES)
def test_onnx_files(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = ONNX_FILES[case]
    write(tmp_path / "m.onnx")
    refuse(["export", "m.onnx", "-o", "x.bundle"], message, capsys)
    refuse(["build", "m.onnx"], message, capsys)


# --- what is handed to a verb ----------------------------------------------------------------------------------------

USES: dict[str, tuple[list[str], str]] = {
    "no input": (
        ["run", "net.bundle"],
        (
            "input 'x' is missing\n"
            "  where:   graph 'model'\n"
            "  got:     nothing\n"
            "  allowed: x\n"
            "  fix:     add 'x', float32 [batch, 32], batch 1..16"
        ),
    ),
    "a prompt for tensors": (
        ["run", "net.bundle", "x.npz", "--prompt", "hello"],
        (
            "a prompt does not go with tensors\n"
            "  got:     --prompt 'hello'\n"
            "  allowed: FILE.npz, --input NAME=FILE\n"
            "  fix:     leave --prompt away"
        ),
    ),
    "an unknown graph": (
        ["run", "net.bundle", "x.npz", "--graph", "modle"],
        "this bundle has no graph 'modle'\n  allowed: model (did you mean 'model'?)\n  fix:     add --graph NAME",
    ),
    "no archive": (
        ["run", "net.bundle", "net.onnx"],
        (
            "this file holds no arrays\n"
            "  where:   net.onnx\n"
            "  got:     this is no archive of named arrays\n"
            "  allowed: .npz\n"
            "  fix:     write it with numpy.savez(FILE, NAME_OF_THE_INPUT=array)"
        ),
    ),
    "an answer onto a folder": (
        ["run", "net.bundle", "x.npz", "-o", "a.json"],
        "this is a folder\n  where:   a.json\n  fix:     give a file with -o",
    ),
    "a baseline of an ONNX file": (
        ["bench", "net.bundle", "--against", "torch"],
        (
            "torch has no model to time: this bundle was made of an ONNX file, not of a spec\n"
            "  where:   net.bundle\n"
            "  fix:     leave --against away"
        ),
    ),
    "nothing to inspect": (
        ["inspect", "x.npz"],
        (
            "this is nothing that can be inspected\n"
            "  where:   x.npz\n"
            "  allowed: a bundle's folder, an .onnx file, or an engine (.plan, .engine, .trt)\n"
            "  fix:     check the path"
        ),
    ),
    "a target twice": (
        ["export", "net.onnx", "-o", "x.bundle", "--target", "cpu", "--target", "cpu"],
        "--target cpu is given twice\n  fix:     keep one of the two",
    ),
    "an unknown target": (
        ["export", "net.onnx", "-o", "x.bundle", "--target", "cpuu"],
        (
            f"unknown target 'cpuu'\n"
            f"  allowed: {TARGETS} (did you mean 'cpu'?)\n"
            "  fix:     see them all: metagen-deploy targets"
        ),
    ),
    "a target that the bundle lacks": (
        ["build", "net.bundle", "--target", "h200"],
        (
            "this bundle has no graph for the target 'h200'\n"
            "  allowed: cpu, rtx-4090\n"
            "  fix:     export it for that target too: --target h200"
        ),
    ),
    "a precision that the target lacks": (
        ["export", "image_vit_digits", "-o", "x.bundle", "--target", "cpu", "--precision", "bf16"],
        (
            "target 'cpu' does not take bf16\n"
            "  where:   component 'classifier' of image_vit_digits\n"
            "  allowed: fp32, fp16, int8\n"
            "  fix:     set precision.classifier to one of these, or choose another target"
        ),
    ),
    "a precision to come": (
        ["export", "net.onnx", "-o", "x.bundle", "--precision", "fp8"],
        (
            "precision 'fp8' is not implemented yet\n"
            "  where:   --precision\n"
            "  allowed: fp32, fp16, bf16, int8\n"
            "  fix:     choose one of these"
        ),
    ),
    "a bundle as a source": (
        ["export", "net.bundle", "-o", "x.bundle"],
        "this is a bundle already\n  where:   net.bundle\n  fix:     metagen-deploy build net.bundle",
    ),
    "a folder as a source": (
        ["export", "a.json", "-o", "x.bundle"],
        (
            "this folder is no checkpoint: it has neither config.json nor model_index.json\n"
            "  where:   a.json\n"
            "  allowed: a checkpoint's folder, a shipped spec, a spec's YAML file, or an .onnx file\n"
            "  fix:     correct the path, or write a spec whose `weights: {source: ...}` names the .safetensors"
        ),
    ),
    "a folder as a spec": (
        ["show", "a.json"],
        (
            "this folder is no checkpoint: it has neither config.json nor model_index.json\n"
            "  where:   a.json\n"
            "  allowed: a checkpoint's folder, a shipped spec, a spec's YAML file, or an .onnx file\n"
            "  fix:     correct the path, or write a spec whose `weights: {source: ...}` names the .safetensors"
        ),
    ),
    "a name on a hub as a spec": (
        ["show", "some-lab/Some-Model-1.5B"],
        (
            "there is no file 'some-lab/Some-Model-1.5B'\n"
            "  fix:     a model of a hub is not fetched: download its folder first "
            "(hf download some-lab/Some-Model-1.5B --local-dir FOLDER)"
        ),
    ),
    "an ONNX file as a spec": (
        ["show", "x.npz"],
        (
            "this file is not UTF-8 text\n"
            "  where:   x.npz\n"
            "  got:     byte {...} at offset {...}\n"
            "  fix:     give a spec's YAML file, saved as UTF-8"
        ),
    ),
    "an output that is in the way": (
        ["export", "net.onnx", "-o", "x.npz"],
        (
            "the output exists and is not a bundle\n"
            "  where:   {here}/x.npz\n"
            "  allowed: a new path, an empty folder, or a bundle to replace\n"
            "  fix:     choose another name with -o, or remove it yourself"
        ),
    ),
    "an output below a file": (
        ["export", "net.onnx", "-o", "x.npz/x.bundle"],
        (
            "this path cannot be used\n"
            "  where:   {here}/x.npz/x.bundle\n"
            "  got:     Not a directory\n"
            "  fix:     choose another one, below a folder of yours"
        ),
    ),
}


@pytest.mark.parametrize("case", USES)
def test_uses(case: str, here: Path, capsys: Capture) -> None:
    (here / "a.json").mkdir()
    arguments, message = USES[case]
    refuse(arguments, message, capsys)


def test_building_a_model_keeps_a_bundle_made_of_a_spec(here: Path, capsys: Capture) -> None:
    (here / "net.bundle/spec.yaml").write_text("")
    message = (
        "the bundle beside net.onnx was made of a spec, and would be replaced\n  where:   net.bundle\n"
        "  fix:     metagen-deploy export net.onnx -o BUNDLE, then metagen-deploy build BUNDLE"
    )
    refuse(["build", "net.onnx"], message, capsys)


def test_building_a_model_keeps_what_its_bundle_has(here: Path, capsys: Capture) -> None:
    assert run_command(["build", "net.onnx", "--target", "rtx-4090" if HAS_COMPILER else "cpu"]) == 0
    assert not HAS_COMPILER or "reused" in capsys.readouterr().out
    onnx.save(make_model(19), here / "net.onnx")
    assert run_command(["build", "net.onnx"]) == 0
    assert {
        typed["target"] for typed in json.loads(Path("net.bundle/manifest.json").read_text())["graphs"][0]["typed"]
    } == {"cpu"}


# --- pictures and prompts --------------------------------------------------------------------------------------------


def write_png(path: Path, *, width: int = 8, height: int = 8, end: int | None = None) -> None:
    """A grey picture that claims a size; cut after `end` bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(72))), chunk(b"IEND", b""))
    path.write_bytes((b"\x89PNG\r\n\x1a\n" + b"".join(parts))[:end])


def write_truncated_jpeg(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[:-300])


PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no picture": (lambda path: path.write_text("hello"), "it is no PNG, PPM, PGM or .npy; Pillow: {...}"),
    "empty": (lambda path: path.touch(), "it is no PNG, PPM, PGM or .npy; Pillow: {...}"),
    "truncated PNG": (lambda path: write_png(path, end=50), "the PNG is truncated or damaged"),
    "truncated JPEG": (write_truncated_jpeg, "it is no PNG, PPM, PGM or .npy; Pillow: {...}"),
    "bomb": (
        lambda path: write_png(path, width=100_000, height=100_000),
        "the PNG claims 100000 x 100000 pixels, at most 134217728 are decoded",
    ),
    "smaller than it claims": (
        lambda path: write_png(path, width=11_000, height=11_000),
        "the PNG is truncated",
    ),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c.bundle")
    write, got = PICTURES[case]
    write(tmp_path / "p.png")
    refuse(
        ["run", "c.bundle", "p.png"],
        "this is no picture, or it is damaged\n"
        "  where:   p.png\n"
        f"  got:     {got}\n"
        "  allowed: a picture that opens in a viewer\n"
        "  fix:     save it again, as PNG for example",
        capsys,
    )


def test_a_graph_that_a_picture_does_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c.bundle")
    write_png(tmp_path / "p.png")
    message = "this bundle has no graph 'nope'\n  allowed: classifier\n  fix:     add --graph NAME"
    refuse(["run", "c.bundle", "p.png", "--graph", "nope"], message, capsys)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "a prompt is empty\n  allowed: one token or more\n  fix:     start it with any text"),
        (
            "x" * 100,
            (
                "the prompt and the new tokens do not fit the cache\n"
                "  got:     100 + 1 tokens\n"
                "  allowed: 97 together\n"
                "  fix:     shorten the prompt, or export with a larger `cache`"
            ),
        ),
    ],
)
def test_prompts(prompt: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_decoder(tmp_path / "d.bundle", make_decoder_weights())
    refuse(["run", "d.bundle", "--prompt", prompt], message, capsys)


def test_golden_data_that_lacks_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c.bundle")
    message = (
        "the golden data of graph 'classifier' lacks input:image, output:logits\n"
        "  where:   c.bundle/part/classifier.golden.npz\n"
        "  fix:     export the bundle again"
    )
    refuse(["bench", "c.bundle"], message, capsys)
    refuse(["check", "c.bundle"], message, capsys)
