"""Bad input through the real command line: the whole message, the exit status, and nothing left behind.

Rows are (what is wrong, how it is made, what is said). Messages are compared in full: where, what was got, what is
allowed and what to do are the interface. Damaged bundles are in `test_bad_bundles.py`, weights in
`test_bad_weights.py`, ONNX files in `test_bad_onnx.py`, pictures in `test_bad_media.py`, what a machine refuses in
`test_bad_machine.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from metagen_deploy.cli import run_command
from specs.components import COMPONENTS
from specs.targets import list_targets
from tests.refusals import HAS_COMPILER, make_model, refuse

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
            "  fix:     time the file itself in ONNX Runtime: --against stock-onnx"
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
    "a model as a spec": (
        ["show", "net.onnx"],
        "this is an ONNX file, and no spec\n  where:   net.onnx\n  fix:     metagen-deploy inspect net.onnx",
    ),
    "an output whose name is too long": (
        ["export", "net.onnx", "-o", "x" * 300],
        (
            "this path cannot be used\n"
            f"  where:   {{here}}/{'x' * 300}\n"
            "  got:     File name too long\n"
            "  fix:     choose another one, below a folder of yours"
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
