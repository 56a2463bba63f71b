"""Tensors that are computed from another each time they are read, and that remember which: weights are never held.

    transposed      W [N, K] -> W' [K, N], in the type that W is stored in
    widened         float16 or bfloat16 -> float32, exactly; `find_stored` gives back what it came from

What is derived alike from the same stored bytes has the same identity, so that a pool need not compute it again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import onnx_ir as ir

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_SOURCE, _STEP = "metagen.source", "metagen.step"
_WIDENED = "widened"


def derive(
    source: ir.TensorProtocol,
    step: Hashable,
    compute: Callable[[np.ndarray], np.ndarray],
    *,
    dtype: ir.DataType,
    shape: ir.Shape,
) -> ir.LazyTensor:
    """A tensor that is `compute(source)`; `step` names what is computed, with all that it depends on."""

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(compute(source.numpy()), dtype=dtype)

    lazy = ir.LazyTensor(evaluate, dtype=dtype, shape=shape)
    lazy.meta[_SOURCE], lazy.meta[_STEP] = source, step
    return lazy


def transpose_lazily(tensor: ir.TensorProtocol, axes: tuple[int, ...]) -> ir.LazyTensor:
    """The transposed tensor; of a widened one, the widened transpose of what is stored."""
    stored = find_stored(tensor)
    if stored is not None:
        return widen_lazily(transpose_lazily(stored, axes))
    shape = ir.Shape([tensor.shape.numpy()[axis] for axis in axes])
    return derive(
        tensor, ("transposed", axes), lambda array: np.ascontiguousarray(array.transpose(axes)),
        dtype=tensor.dtype, shape=shape,
    )  # fmt: skip


def widen_lazily(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """A float16 or bfloat16 tensor as float32."""
    assert tensor.dtype in NARROW
    return derive(
        tensor, _WIDENED, lambda array: array.astype(np.float32),
        dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()),
    )  # fmt: skip


def find_stored(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """The float16 or bfloat16 tensor that a float32 one was widened from; None for any other."""
    if isinstance(tensor, ir.LazyTensor) and tensor.meta.get(_STEP) == _WIDENED:
        source: ir.TensorProtocol = tensor.meta[_SOURCE]
        return source
    return None


def find_source(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor at the end of the chain, whose bytes are stored somewhere."""
    while isinstance(tensor, ir.LazyTensor) and _SOURCE in tensor.meta:
        tensor = tensor.meta[_SOURCE]
    return tensor


def list_steps(tensor: ir.TensorProtocol) -> tuple[Hashable, ...]:
    """What was computed from `find_source(tensor)`, last step first."""
    steps = []
    while isinstance(tensor, ir.LazyTensor) and _SOURCE in tensor.meta:
        steps.append(tensor.meta[_STEP])
        tensor = tensor.meta[_SOURCE]
    return tuple(steps)
