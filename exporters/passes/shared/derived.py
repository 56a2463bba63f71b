"""Tensors that are computed from another each time they are read, and that remember which: weights are never held.

    transposed      W [N, K] -> W' [K, N], in the type that W is stored in
    widened         float16 or bfloat16 -> float32, exactly; `find_stored` gives back what it came from

What is derived alike from the same stored bytes has the same identity, so that a pool need not compute it again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import numpy as np
import onnx_ir as ir

from specs.system.pages import drop_pages

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_SOURCE, _STEP = "metagen.source", "metagen.step"
_WIDENED = "widened"
_PIECE_ELEMENTS = 4 << 20
_GIVEN_BACK_BYTES = 1 << 20  # a model of many small weights is looked through whole before the first is written
_TURNED_ROWS = 16  # of a line of the processor's cache each


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
        tensor, ("transposed", axes), lambda array: _transpose(array, axes),
        dtype=tensor.dtype, shape=shape,
    )  # fmt: skip


def _transpose(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """A contiguous copy; a matrix a few rows at a time, which is 3 to 5 times as fast as numpy at once."""
    if axes != (1, 0):
        return np.ascontiguousarray(array.transpose(axes))
    out = np.empty(array.shape[::-1], array.dtype)
    for row in range(0, len(array), _TURNED_ROWS):
        out[:, row : row + _TURNED_ROWS] = array[row : row + _TURNED_ROWS].T
    return out


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


def list_pieces(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """Every value of a tensor in flat pieces, float32 for a widened one, and in no particular order.

    For what does not depend on the order (largest, any, count). Pages of a file are given back piece by piece.
    """
    steps = list_steps(tensor)
    plain = all(step == _WIDENED or (isinstance(step, tuple) and step[0] == "transposed") for step in steps)
    source = find_source(tensor) if plain else tensor
    array = source.numpy()
    flat = array.reshape(-1) if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)
    in_file = isinstance(source, ir.ExternalTensor) and flat.nbytes >= _GIVEN_BACK_BYTES
    for start in range(0, flat.size, _PIECE_ELEMENTS):
        piece = flat[start : start + _PIECE_ELEMENTS]
        yield piece.astype(np.float32) if _WIDENED in steps else piece
        if in_file:
            drop_pages(piece.ctypes.data, piece.nbytes)


def is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether a float tensor holds neither NaN nor infinity."""
    return all(np.isfinite(piece).all() for piece in list_pieces(tensor))


def read_stored(tensor: ir.TensorProtocol) -> np.ndarray:
    """The tensor's values in the type that they are stored in: mapped where they lie in a file, exact either way."""
    stored = find_stored(tensor)
    return (tensor if stored is None else stored).numpy()


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
