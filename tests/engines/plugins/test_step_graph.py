"""Whole decode steps by the plugins' own kernels: the nodes of FuseStep, run by the CUDA code compiled for the host.

The portable graph in ONNX Runtime is what is wanted. What only TensorRT adds, types and memory between the nodes, is
driven in test_faces.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from exporters.passes import run_pipeline
from tests.engines.plugins.kernels_on_host import compile_for_host
from tests.exporters.passes.test_fuse_step_models import FP16_FACTOR, FP32_LIMIT, make_step, run
from tests.passes_support import differ

_FILES = (
    "step/multiply_columns.cu", "step/multiply_lines.cu", "step/step_attention.cu", "step/step_linear.cpp",
)  # fmt: skip
_GATES = ("none", "silu", "gelu", "gelu_tanh")
Array = NDArray[Any]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_for_host(tmp_path_factory.mktemp("step"), _FILES, together=True)
    library.metagenStepAttentionWorkspace.restype = ctypes.c_int64
    return library


def _point(arrays: list[Array | None]) -> ctypes.Array[ctypes.c_void_p]:
    assert all(array is None or array.flags.c_contiguous for array in arrays)
    return (ctypes.c_void_p * 12)(*[None if array is None else array.ctypes.data for array in arrays])


def make_ops(library: ctypes.CDLL) -> list[type[OpRun]]:
    """The plugins' nodes, as engines/plugins/cpp/step/*_op.h hand them to the kernels."""

    class MetagenStepLinear(OpRun):
        op_domain = "metagen.plugin"

        def _run(self, x: Array, *inputs: Array, **given: Any) -> tuple[Array, ...]:
            rest = [np.ascontiguousarray(one) for one in inputs]
            count, x = given["weights"], np.ascontiguousarray(x)
            weights = [rest.pop(0) for _ in range(count)]
            norm = rest.pop(0) if given["norm"] else None
            biases = [rest.pop(0) for _ in range(count)] if given["bias"] else []
            residual = rest.pop(0) if given["residual"] else None
            widths = [weight.shape[0 if given["transposed"] else 1] for weight in weights]
            outs = [
                np.full((*x.shape[:-1], n), np.nan, x.dtype)
                for n in (widths[:1] if given["gate"] != "none" else widths)
            ]
            three: Callable[[list[Array]], list[Array | None]] = lambda some: [*some, *[None] * (3 - len(some))]  # noqa: E731
            sizes = (ctypes.c_int32 * 6)(int(np.prod(x.shape[:-1])), x.shape[-1], count, *widths)
            gate = _GATES.index(given["gate"])
            options = (ctypes.c_int32 * 4)(gate, given["half"], given["transposed"], 0)
            pointers = _point([x, *three(weights), norm, *three(biases), residual, *three(outs)])
            assert library.metagenStepLinear(sizes, options, ctypes.c_float(given["epsilon"]), pointers, None) == 0
            return tuple(outs)

    class MetagenStepAttention(OpRun):
        op_domain = "metagen.plugin"

        def _run(self, q: Array, k: Array, v: Array, *inputs: Array, **given: Any) -> tuple[Array, ...]:
            past_k, past_v, start, *turns = (np.ascontiguousarray(one) for one in inputs)
            batch, heads, slots, size = past_k.shape
            out, keys, values = np.full_like(q, np.nan), np.full_like(past_k, np.nan), np.full_like(past_v, np.nan)
            sizes = (ctypes.c_int32 * 5)(batch, heads, given["groups"], slots, size)
            parts = np.zeros(library.metagenStepAttentionWorkspace(sizes) // 4, np.float32)
            options = (ctypes.c_int32 * 3)(given["window"], given["half"], 1)
            factors = (ctypes.c_float * 2)(given["scale"], given["softcap"])
            fed = [np.ascontiguousarray(one) for one in (q, k, v)]
            angles = turns or [None, None]
            pointers = _point([*fed, past_k, past_v, start, *angles, out, keys, values, parts])
            assert library.metagenStepAttention(sizes, options, factors, pointers, None) == 0
            return out, keys, values

    return [MetagenStepLinear, MetagenStepAttention]


@pytest.mark.parametrize(
    "name", ["text_llm_tiny:tiny", "audio_whisper_tiny:tiny", "Mistral", "Qwen 2", "Gemma 2", "GPT-2"]
)
def test_a_step_by_the_kernels(name: str, kernels: ctypes.CDLL, tmp_path: Path) -> None:
    step = make_step(name, tmp_path)
    errors = {}
    for precision in ("fp32", "fp16"):
        fused = run_pipeline(
            step.model, lowering="tensorrt-8", precision=precision, plugins=True, largest=step.largest
        ).model
        got = ReferenceEvaluator(ir.to_proto(fused), new_ops=make_ops(kernels)).run(None, dict(step.feed))
        errors[precision] = differ(step.wanted, got)
    ordinary = run(run_pipeline(step.model, lowering="tensorrt-8", precision="fp16").model, step.feed)
    assert errors["fp32"] < FP32_LIMIT
    assert errors["fp16"] < FP16_FACTOR * differ(step.wanted, ordinary)
