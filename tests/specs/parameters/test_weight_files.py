"""Files of weights: what is no such file, what would run code, and what is not the model's, in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.specs.tiny import WEIGHTS, refuse, with_weights


def test_missing_file(tmp_path: Path) -> None:
    assert refuse(with_weights(tmp_path / "no.safetensors")) == (
        f"the weights file does not exist\n  where:   {tmp_path / 'no.safetensors'}\n  fix:     correct weights.source"
    )


@pytest.mark.parametrize("keep", [0, 4, 100, 1000, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:keep])
    text = refuse(with_weights(path))
    assert text.startswith(f"the weights file is truncated, or is not safetensors\n  where:   {path}\n  got:     ")
    assert text.endswith("\n  fix:     copy or download it again, or convert it again")


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    assert refuse(with_weights(tmp_path / "w.pt")) == (
        "weights in '.pt' files are not read: they can hold code\n"
        f"  where:   {tmp_path / 'w.pt'}\n"
        "  allowed: .safetensors\n"
        "  fix:     convert once:"
        " safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
    )


def test_pickle_with_another_name_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.safetensors")
    assert refuse(with_weights(tmp_path / "w.safetensors")).startswith("the weights file is truncated, or is not safe")


HEAD = "classifier.head.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {HEAD: None},
            (
                "the weights file lacks 1 of 56 tensors; the first is 'classifier.head.weight'\n"
                "  where:   PATH\n"
                "  fix:     use weights of this spec's sizes, named <component>.<parameter>"
            ),
        ),
        (
            {HEAD: None, "classifier.heads.weight": torch.zeros(10, 96)},
            (
                "the weights file lacks 1 of 56 tensors; the first is 'classifier.head.weight'\n"
                "  where:   PATH\n"
                "  got:     56 tensors; nearest to it: classifier.heads.weight"
                " (did you mean 'classifier.heads.weight'?)\n"
                "  fix:     use weights of this spec's sizes, named <component>.<parameter>"
            ),
        ),
        (
            {"classifier.layers.4.mlp.up.bias": torch.zeros(3)},
            (
                "the weights file has 1 tensors that the model does not;"
                " the first is 'classifier.layers.4.mlp.up.bias'\n"
                "  where:   PATH\n"
                "  got:     57 tensors\n"
                "  allowed: 56 tensors\n"
                "  fix:     remove them from the file, or correct the spec's sizes"
            ),
        ),
        (
            {HEAD: torch.zeros(96, 10)},
            (
                "'classifier.head.weight' has the wrong shape\n"
                "  where:   tensor 'classifier.head.weight' of PATH\n"
                "  got:     [96, 10]\n"
                "  allowed: [10, 96], by the spec's sizes\n"
                "  fix:     correct the spec's sizes, or use the weights that belong to it"
            ),
        ),
        (
            {HEAD: torch.zeros(10, 96, dtype=torch.int8)},
            (
                "'classifier.head.weight' has the wrong type\n"
                "  where:   tensor 'classifier.head.weight' of PATH\n"
                "  got:     int8\n"
                "  allowed: float32, float16, bfloat16\n"
                "  fix:     store it as one of these; quantisation happens at export"
            ),
        ),
        (
            {HEAD: torch.full((10, 96), torch.nan)},
            (
                "'classifier.head.weight' holds NaN or infinity\n"
                "  where:   tensor 'classifier.head.weight' of PATH\n"
                "  got:     960 of 960 values are not finite\n"
                "  fix:     train or convert again; these weights give no answers"
            ),
        ),
    ],
    ids=["missing", "renamed", "extra", "shape", "type", "nan"],
)
def test_weights_that_are_not_the_models(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {**load_file(WEIGHTS), **change}
    save_file({n: t for n, t in tensors.items() if t is not None}, path)
    assert refuse(with_weights(path)) == text.replace("PATH", str(path))
