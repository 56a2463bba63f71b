"""Pipelines that share their beginnings write, byte by byte, what each writes alone; and do the shared part once."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from exporters.passes import PIPELINES, PipelineResult, beginnings, run_pipeline, share_beginnings
from exporters.passes.infer_types import InferTypes
from exporters.passes.inline_functions import InlineFunctions
from tests.passes_support import parse, random

#: All but int8 for TensorRT, which asks for calibrated ranges.
WANTED = [key for key in PIPELINES if not (key[0].startswith("tensorrt") and key[1] == "int8")]

MODEL = """
<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
g (float[B,32,H,6] x) => (float[B,H,192] y) {
    planes = Constant <value = int64[4] {0, 32, -1, 6}> ()
    tokens = Constant <value = int64[3] {0, 192, -1}> ()
    axis = Constant <value = int64[1] {1}> ()
    same = Reshape (x, planes)
    normed = metagen.MetagenGroupNormSilu <groups: int = 8, eps: float = 0.00001, rank: int = 4> (same, weight, bias)
    flat = Reshape (normed, tokens)
    turned = Transpose <perm = [0, 2, 1]> (flat)
    wide = Unsqueeze (turned, axis)
    q = MatMul (wide, projection)
    o = metagen.MetagenAttention <scale: float = 0.25, causal: int = 1, window: int = 0, groups: int = 1> (q, q, q)
    y = Squeeze (o, axis)
}
"""


def make_model() -> ir.Model:
    """Two custom ops, whose bodies hold Constants, and a product."""
    return parse(MODEL, {"weight": random(32), "bias": random(32, seed=1), "projection": random(192, 192, seed=2)})


def spell(result: PipelineResult) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    return ir.to_proto(result.model).SerializeToString(), result.keep_fp32, result.log


def run_shared() -> list[PipelineResult]:
    begun = share_beginnings(make_model(), WANTED)
    return [run_pipeline(begun, lowering=lowering, precision=precision) for lowering, precision in WANTED]


def test_shared_equals_alone() -> None:
    alone = [run_pipeline(make_model(), lowering=lowering, precision=precision) for lowering, precision in WANTED]
    for wanted, one, shared in zip(WANTED, alone, run_shared(), strict=True):
        assert spell(one) == spell(shared), wanted


def test_mutant_tensors_that_are_not_copied_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that renames a Constant's tensor in one pipeline would rename it in all others."""
    alone = [run_pipeline(make_model(), lowering=lowering, precision=precision) for lowering, precision in WANTED]
    monkeypatch.setattr(beginnings, "_own_constant", lambda node: None)
    assert any(spell(one) != spell(shared) for one, shared in zip(alone, run_shared(), strict=True))


def test_what_is_alike_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter[str] = Counter()
    for kind in (InlineFunctions, InferTypes):
        own = kind.call

        def call(self: ir.passes.InPlacePass, model: ir.Model, own=own, name=kind.__name__) -> ir.passes.PassResult:
            called[name] += 1
            return own(self, model)

        monkeypatch.setattr(kind, "call", call)
    wanted = [("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("onnxruntime", "int8")]
    begun = share_beginnings(make_model(), wanted)
    for lowering, precision in wanted:
        run_pipeline(begun, lowering=lowering, precision=precision)
    assert called == {"InlineFunctions": 1, "InferTypes": 3}, "before and after the bodies are inlined, and their opset"


def test_notes_of_the_beginning_are_in_every_log() -> None:
    results = dict(zip(WANTED, run_shared(), strict=True))
    said = results["onnxruntime", "fp32"].log
    assert said
    assert results["onnxruntime", "fp16"].log[: len(said)] == said
    assert results["onnxruntime", "fp32"].log is not results["onnxruntime", "fp16"].log
