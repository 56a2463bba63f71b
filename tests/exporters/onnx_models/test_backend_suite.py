"""ONNX's own node tests through the pipelines: the numbers stay, or the refusal names the node and why.

Every third test that ONNX Runtime itself can run is taken (the whole suite takes minutes; METAGEN_BACKEND_SUITE=all
runs it). The reference is ONNX Runtime on the untouched model.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.passes import run_pipeline
from specs.errors import GraphError

with warnings.catch_warnings():  # the suite divides by zero and overflows on purpose while it is made
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests

    CASES = load_model_tests(kind="node")

STEP = 1 if os.environ.get("METAGEN_BACKEND_SUITE") == "all" else 3
#: Relative to 1 + |reference|. float32: another order of summation. float16: 11 bits, and a few operations deep.
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2}
#: ONNX Runtime and ONNX's reference disagree here: one returns the lowest float for a masked score, the other -inf.
DISPUTED = ("qk_matmul_bias_3d_mask_causal", "qk_matmul_bias_4d_mask_causal")


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@cache
def list_runnable() -> list[tuple[Any, dict[str, Any], list[Any]]]:
    """The cases that ONNX Runtime takes as they are, with their inputs and its outputs.

    Inputs are copied for every run: a BatchNormalization in training mode updates the caller's statistics in place.
    """
    runnable = []
    for case in CASES[::STEP]:
        feed = {value.name: array for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}
        try:
            runnable.append((case, feed, open_session(case.model.SerializeToString()).run(None, deepcopy(feed))))
        except Exception:  # noqa: BLE001  whatever ONNX Runtime refuses is no reference
            continue
    return runnable


def measure(reference: Any, result: Any) -> float:
    """The largest difference relative to 1 + |reference|; infinite for another type, shape, text or integer."""
    if isinstance(reference, (list, tuple)):
        same = isinstance(result, (list, tuple)) and len(reference) == len(result)
        return max(map(measure, reference, result), default=0.0) if same else float("inf")
    if reference is None or result is None:
        return 0.0 if reference is result else float("inf")
    a, b = np.asarray(reference), np.asarray(result)
    if a.dtype != b.dtype or a.shape != b.shape:
        return float("inf")
    if a.dtype.kind not in "fc":
        return 0.0 if (a == b).all() else float("inf")
    if a.dtype == np.float16:  # already half: one unit in its last place is no difference of ours
        a, b = a.astype(np.float32), np.where(np.isclose(a, b, rtol=2e-3, atol=1e-3), a, b).astype(np.float32)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(equal, 0, np.abs(a - b) / (1 + np.abs(a)))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0))


@pytest.mark.parametrize(
    ("lowering", "precision", "taken_share"),
    [("onnxruntime", "fp32", 1.0), ("tensorrt-8", "fp32", 0.8), ("tensorrt-11", "fp16", 0.98)],
)
def test_node_tests(lowering: str, precision: str, taken_share: float) -> None:
    wrong: list[tuple[str, float | str]] = []
    verdicts = Counter[str]()
    for case, feed, reference in list_runnable():
        try:
            result = run_pipeline(ir.from_proto(case.model), lowering=lowering, precision=precision)
        except GraphError as error:
            verdicts["refused"] += 1
            wrong += [] if "cannot be lowered: " in error.problem else [(case.name, error.problem)]
            continue
        session = open_session(ir.to_proto(result.model).SerializeToString())
        assert [v.name for v in session.get_outputs()] == [v.name for v in case.model.graph.output], case.name
        difference = measure(reference, session.run(None, deepcopy(feed)))
        verdicts["as asked" if not result.keep_fp32 else "kept some float32"] += 1
        if difference > TOLERANCE[precision] and not any(name in case.name for name in DISPUTED):
            wrong.append((case.name, difference))
    total = verdicts.total()
    print(f"{lowering} {precision}: {dict(verdicts)} of {total}")  # noqa: T201  pytest -s shows the account
    assert not wrong
    assert total > 400
    assert 1 - verdicts["refused"] / total >= taken_share
