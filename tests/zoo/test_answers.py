"""Every tiny spec still answers what it answered: a few numbers of each output of each graph, kept in answers.json.

tests/checkpoints holds the modules against the libraries that they come from, and tests/families against formulas;
this notices in a minute that something changed which should not. Where a change is meant (another spec, another draw
of weights or inputs), write the file again:

    python -m tests.zoo.test_answers
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from specs.handlers import get_handler
from specs.load import load_spec
from specs.models import layers
from tests.zoo.whole_path import list_tiny_specs

KEPT = Path(__file__).with_name("answers.json")
#: float32 on another CPU adds up in another order; a change of meaning moves these numbers by a part of themselves.
SHARE = 1e-4


def describe(array: np.ndarray) -> list[float]:
    """The length of an output, and how it lies to three directions: scaled, swapped and masked values all move one."""
    values = array.astype(np.float64).ravel()
    directions = np.random.default_rng(values.size).standard_normal((3, values.size))
    return [float(np.linalg.norm(values)), *(float(x) for x in directions @ values)]


def answer(name: str) -> dict[str, list[float]]:
    """Of one batch of two seeded samples, in float32."""
    spec = load_spec(name)
    handler = get_handler(spec)
    sizes = {dim: min(max(size.opt, 2), size.max) for dim, size in spec.dims.items()}
    sizes["batch"] = min(2, spec.dims["batch"].max)
    found = {}
    for graph in handler.build(spec, dtype=torch.float32):
        inputs = handler.make_realistic_inputs(spec, graph, sizes=sizes, seed=5)
        with torch.no_grad():
            outputs = graph.module(*map(torch.from_numpy, inputs.values()))
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        for tensor, value in zip(graph.outputs, outputs, strict=True):
            found[f"{graph.component}.{graph.file_stem}.{tensor.name}"] = describe(value.numpy())
    return found


def compare(name: str) -> dict[str, float]:
    """How far each output moved, as a share of its length."""
    kept, found = json.loads(KEPT.read_text(encoding="utf-8"))[name], answer(name)
    assert list(found) == list(kept)
    return {
        tensor: max(abs(a - b) for a, b in zip(found[tensor], numbers, strict=True)) / max(numbers[0], 1e-6)
        for tensor, numbers in kept.items()
    }


@pytest.mark.parametrize("name", list_tiny_specs())
def test_a_spec_answers_what_it_answered(name: str) -> None:
    moved = compare(name)
    assert max(moved.values()) < SHARE, moved


def _make_gelu_tanh(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers, "activate", lambda x, activation: functional.gelu(x, approximate="tanh"))


def _scale_by_root_two(patch: pytest.MonkeyPatch) -> None:
    attend = layers.ops.attention
    patch.setattr(layers.ops, "attention", lambda *given, scale, **named: attend(*given, scale=scale * 2**0.5, **named))


def _drop_a_mask(patch: pytest.MonkeyPatch) -> None:
    attend = layers.ops.attention
    patch.setattr(layers.ops, "attention", lambda *given, causal, **named: attend(*given, causal=False, **named))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_make_gelu_tanh, "image_vit_base:tiny"),
        (_scale_by_root_two, "image_vit_base:tiny"),
        (_drop_a_mask, "multimodal_clip:tiny"),
    ],
)
def test_small_changes_of_meaning_are_noticed(change: Callable[[pytest.MonkeyPatch], None], name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        assert max(compare(name).values()) > 2 * SHARE


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(answer(name))}" for name in list_tiny_specs()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
