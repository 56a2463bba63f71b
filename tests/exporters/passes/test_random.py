"""Random graphs near each pattern, through every float32 pipeline: ONNX Runtime answers as for the untouched graph.

Seeded, so that a failure comes again; METAGEN_RANDOM_GRAPHS says how many a family (40).
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.passes import PIPELINES, run_pipeline
from tests.exporters.passes.random_graphs import FAMILIES, GraphWriter

COUNT = int(os.environ.get("METAGEN_RANDOM_GRAPHS", "40"))
LOWERINGS = [lowering for lowering, precision in PIPELINES if precision == "fp32"]
#: Family -> the pass that is near, and the lowering that has it.
NEAR = {
    "gelu": ("FuseGelu", "onnxruntime"),
    "masked scores": ("SelectMaskedScores", "tensorrt-8"),
    "patches": ("MultiplyPatches", "tensorrt-8"),
    "tokens": ("FlattenTokens", "tensorrt-8"),
    "elu": ("SpellElu", "tensorrt-11"),
}
#: Relative to 1 + |reference|: another order of summation, and ONNX Runtime's own approximations of erf and tanh.
TOLERANCE = 2e-5


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def draw(family: str, seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray], list[np.ndarray]] | None:
    """A graph, what it is fed and what it answers; None for a graph that ONNX Runtime refuses."""
    writer = GraphWriter(np.random.default_rng([seed, len(family)]))
    opset = FAMILIES[family](writer)
    try:
        model = writer.finish(opset)
        return model, writer.feed, run(model, writer.feed)
    except Exception:  # noqa: BLE001  whatever ONNX or ONNX Runtime refuses is no reference
        return None


def find_differences(family: str) -> tuple[list[tuple[int, str]], Counter[tuple[str, str]], int]:
    """(seed, lowering) of answers that differ, how often each (pass, lowering) fired, and how many graphs ran."""
    wrong: list[tuple[int, str]] = []
    fired, ran = Counter[tuple[str, str]](), 0
    for seed in range(COUNT):
        drawn = draw(family, seed)
        if drawn is None:
            continue
        ran += 1
        model, feed, wanted = drawn
        for lowering in LOWERINGS:
            result = run_pipeline(ir.from_proto(model), lowering=lowering, precision="fp32")
            fired.update((line.split(":")[0], lowering) for line in result.log if " stays: " not in line)
            try:
                answers = run(ir.to_proto(result.model), feed)
            except Exception:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
                answers = []
            if len(answers) != len(wanted) or not all(map(agree, wanted, answers)):
                wrong.append((seed, lowering))
    return wrong, fired, ran


def agree(wanted: np.ndarray, answer: np.ndarray) -> bool:
    same_kind = (wanted.shape, wanted.dtype) == (answer.shape, answer.dtype)
    return same_kind and np.allclose(wanted, answer, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_graphs(family: str) -> None:
    wrong, fired, ran = find_differences(family)
    assert not wrong
    assert ran > COUNT // 2
    assert fired[NEAR[family]] >= COUNT // 20, "the pattern is never drawn, and nothing is tested"


@pytest.mark.parametrize(
    ("family", "mutant", "change"),
    [
        ("gelu", "fuse_gelu._keeps_rank", lambda x, last: True),
        ("masked scores", "select_masked_scores._ABSORBING", 0.0),
        ("tokens", "flatten_tokens._are_equal", lambda first, second: tuple(first[1:]) == tuple(second[1:])),
    ],
)
def test_a_rule_that_is_left_out_is_found(
    family: str, mutant: str, change: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"exporters.passes.{mutant}", change)
    assert find_differences(family)[0]
