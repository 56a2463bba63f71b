"""Weights and calibration data that do not fit, are damaged, or could run code: the whole message, nothing left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specs.sources import ZOO
from tests.refusals import refuse

Capture = pytest.CaptureFixture[str]


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
            "  fix:     reshape or resize the samples, or say the range: --dim 'NAME=MIN:OPT:MAX'"
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
