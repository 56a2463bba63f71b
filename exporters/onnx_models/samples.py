"""Inputs for a graph that is nobody's family: made up, or a user's calibration file cut into feeds.

made up     floats in [-1, 1), integers 0 or 1: legal as ids, masks, lengths and indices alike
calibration .npz, one array per input: samples along the graph's own first axis, or along one axis more in front
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.bundle import IoTensor
from specs.errors import CalibrationError
from specs.samples.files import read_arrays
from specs.schema import Dim

Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What random values are drawn from; both ranges are half open. `given` fills whole inputs with one integer."""

    floats: tuple[float, float] = (-1.0, 1.0)
    integers: tuple[int, int] = (0, 2)
    given: Mapping[str, int] = field(default_factory=dict)


def make_random_inputs(inputs: Sequence[IoTensor], sizes: Mapping[str, int], draw: Draw, *, seed: int) -> Feed:
    """Seeded values for every input; `sizes` gives the dynamic dims."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for tensor in inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        floating = np.dtype(tensor.dtype).kind == "f"
        drawn = rng.uniform(*draw.floats, shape) if floating else rng.integers(*draw.integers, shape)
        if tensor.name in draw.given:
            drawn = np.full(shape, draw.given[tensor.name])
        arrays[tensor.name] = np.asarray(drawn).astype(tensor.dtype)
    return arrays


def read_samples(
    path: Path, inputs: Sequence[IoTensor], dims: Mapping[str, Dim], sizes: Mapping[str, int]
) -> list[Feed]:
    """Cut a calibration file into feeds.

    Args:
        sizes: how many samples along a dynamic first axis make one feed, where there are as many.

    Raises:
        CalibrationError: the file is damaged, or an array is missing, or of another type, shape or number of samples.
    """
    arrays = read_arrays(path, [tensor.name for tensor in inputs])
    cut = {tensor.name: list(_cut(path, arrays[tensor.name], tensor, dims, sizes)) for tensor in inputs}
    counts = {name: len(feeds) for name, feeds in cut.items()}
    if len(set(counts.values())) > 1:
        raise CalibrationError(
            "the arrays make different numbers of feeds",
            where=str(path),
            got=", ".join(f"{name} {list(arrays[name].shape)} makes {count}" for name, count in counts.items()),
            fix="give every array as many samples; one more axis in front counts them where there is no batch",
        )
    return [dict(zip(cut, feed, strict=True)) for feed in zip(*cut.values(), strict=True)]


def read_sample_sizes(path: Path, inputs: Sequence[IoTensor]) -> dict[str, list[int]]:
    """Dim -> the sizes that a calibration file has for it; not of axes along which samples lie."""
    arrays = read_arrays(path, [tensor.name for tensor in inputs])
    found: dict[str, list[int]] = {}
    for tensor in inputs:
        array = arrays[tensor.name]
        stacked = array.ndim == len(tensor.shape) + 1
        given = array.shape[1:] if stacked else array.shape
        for axis, (size, length) in enumerate(zip(tensor.shape, given, strict=False)):
            if isinstance(size, str) and length and (stacked or axis):
                found.setdefault(size, []).append(length)
    return found


def _cut(
    path: Path, array: NDArray[Any], tensor: IoTensor, dims: Mapping[str, Dim], sizes: Mapping[str, int]
) -> Iterator[NDArray[Any]]:
    _check_values(path, array, tensor)
    rank = len(tensor.shape)
    stacked = array.ndim == rank + 1
    inner = array.shape[1:] if stacked else array.shape
    fixed = tensor.shape if stacked else tensor.shape[1:]
    given = inner if stacked else inner[1:]
    if array.ndim not in (rank, rank + 1) or not all(map(lambda s, w: _fits(s, w, dims), given, fixed)):
        bounds = [f"{name} {dims[name].min} to {dims[name].max}" for name in tensor.shape if isinstance(name, str)]
        shape = ", ".join(map(str, tensor.shape))
        raise CalibrationError(
            f"array '{tensor.name}' has the wrong shape",
            where=str(path),
            got=str(list(array.shape)),
            allowed=f"[{shape}] with samples along its first axis, or [samples{', ' * bool(shape)}{shape}]"
            + (f"; {', '.join(dict.fromkeys(bounds))}" if bounds else ""),
            fix="reshape or resize the samples" + (", or say the range: --dim 'NAME=MIN:OPT:MAX'" if bounds else ""),
        )
    if stacked:
        yield from (array[index, ...] for index in range(len(array)))  # 0-d stays an array
    elif rank == 0:
        yield array
    else:
        count = _choose_count(path, len(array), tensor, dims, sizes)
        for start in range(0, len(array) - count + 1, max(count, 1)):
            yield array[start : start + count]


def _fits(size: int, wanted: int | str, dims: Mapping[str, Dim]) -> bool:
    return size == wanted if isinstance(wanted, int) else dims[wanted].min <= size <= dims[wanted].max


def _choose_count(path: Path, total: int, tensor: IoTensor, dims: Mapping[str, Dim], sizes: Mapping[str, int]) -> int:
    """How many samples one feed takes: what the first axis is fixed to, else `sizes`, or all when there are fewer."""
    first = tensor.shape[0]
    least = first if isinstance(first, int) else dims[first].min
    if total < least or not total:
        raise CalibrationError(
            f"array '{tensor.name}' has too few samples",
            where=str(path),
            got=str(total),
            allowed=f"{max(least, 1)} or more: the first axis of the graph's input is {first}",
            fix="save more samples",
        )
    return first if isinstance(first, int) else min(sizes[first], total)


def _check_values(path: Path, array: NDArray[Any], tensor: IoTensor) -> None:
    if array.dtype != tensor.dtype:
        raise CalibrationError(
            f"array '{tensor.name}' has the wrong type",
            where=str(path),
            got=str(array.dtype),
            allowed=tensor.dtype,
            fix=f"convert it: array.astype('{tensor.dtype}')",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(
            f"array '{tensor.name}' holds NaN or infinity",
            where=str(path),
            got=f"{int((~np.isfinite(array)).sum())} values",
            allowed="finite values",
            fix="remove these samples",
        )
