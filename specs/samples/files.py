"""Arrays from .npz files, checked against a graph's inputs before anything uses them. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.arrays import UnreadableArrayError, list_npz, read_npz
from specs.errors import CalibrationError
from specs.graphs import GraphSpec
from specs.schema import Dim, TensorSpec

Arrays = dict[str, NDArray[Any]]


def load_arrays(
    path: Path,
    expected: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    *,
    extra: tuple[str, ...] = (),
) -> Arrays:
    """One array for each tensor of `expected`, and for each name of `extra`; all with the same number of samples.

    The first axis counts samples, whatever `dims` says of `batch`; other dynamic axes must lie within their dim.

    Raises:
        CalibrationError: the file is missing, damaged or empty, or an array has another name, shape, type or range.
    """
    names = [*(tensor.name for tensor in expected), *extra]
    arrays = read_arrays(path, names)
    for tensor in expected:
        _check_array(path, arrays[tensor.name], tensor, dims)
        _check_bounds(path, arrays[tensor.name], tensor)
    counts = {name: len(arrays[name]) for name in names}
    if len(set(counts.values())) > 1:
        raise CalibrationError(
            "the arrays have different numbers of samples",
            where=str(path),
            got=", ".join(f"{name} {count}" for name, count in counts.items()),
            fix="give every array the same first axis",
        )
    return {name: arrays[name] for name in counts}


def read_arrays(path: Path, names: Sequence[str]) -> Arrays:
    """The arrays called `names` of a .npz, whatever they hold.

    Raises:
        CalibrationError: the file is missing or damaged, or has no array of one of the names.
    """
    if not path.exists():
        raise CalibrationError("the data file does not exist", where=str(path), fix="correct its path")
    try:
        there = list_npz(path)
        arrays = read_npz(path, names)
    except UnreadableArrayError as error:
        raise CalibrationError(
            "the data file is truncated, or is not a .npz of plain arrays",
            where=str(path),
            got=str(error),
            fix="write it again: numpy.savez_compressed(FILE, NAME_OF_THE_INPUT=array)",
        ) from None
    for name in names:
        if name not in arrays:
            raise CalibrationError(
                f"the data has no array '{name}'",
                where=str(path),
                got=", ".join(there) or "nothing",
                allowed=", ".join(names),
                fix="save the arrays under the names of the graph's inputs",
            )
    return {name: arrays[name] for name in names}


def _check_array(path: Path, array: NDArray[Any], tensor: TensorSpec, dims: Mapping[str, Dim]) -> None:
    def error(problem: str, *, got: str, allowed: str, fix: str) -> CalibrationError:
        return CalibrationError(f"array '{tensor.name}' {problem}", where=str(path), got=got, allowed=allowed, fix=fix)

    def fits(size: int, wanted: int | str) -> bool:
        if isinstance(wanted, int):
            return size == wanted
        return wanted not in dims or dims[wanted].min <= size <= dims[wanted].max

    shape = [str(d) for d in tensor.shape]
    wanted = f"[samples{', ' + ', '.join(shape[1:]) if shape[1:] else ''}]"
    if array.ndim != len(tensor.shape) or not all(map(fits, array.shape[1:], tensor.shape[1:])):
        bounds = [f"{d} {dims[d].min} to {dims[d].max}" for d in tensor.shape[1:] if isinstance(d, str) and d in dims]
        raise error(
            "has the wrong shape",
            got=str(list(array.shape)),
            allowed=wanted + (f" with {', '.join(bounds)}" if bounds else ""),
            fix="reshape or resize the samples",
        )
    if not len(array):
        raise error("is empty", got=str(list(array.shape)), allowed="at least one sample", fix="save some samples")
    if array.dtype != tensor.dtype:
        raise error(
            "has the wrong type",
            got=str(array.dtype),
            allowed=tensor.dtype,
            fix=f"convert it: {tensor.name}.astype('{tensor.dtype}')",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise error("holds NaN or infinity", got=f"{bad} values", allowed="finite values", fix="remove these samples")


def _check_bounds(path: Path, array: NDArray[Any], tensor: TensorSpec) -> None:
    if tensor.name not in ("image", "token_ids", "lengths"):
        return
    highest = {"image": 1.0, "token_ids": tensor.high - 1, "lengths": np.inf}[tensor.name]
    if array.min() < tensor.low or array.max() > highest:
        raise CalibrationError(
            f"array '{tensor.name}' holds values out of range",
            where=str(path),
            got=f"{array.min()} to {array.max()}",
            allowed=f"{tensor.low:.0f} to {highest:.0f}" if np.isfinite(highest) else f"{tensor.low:.0f} or more",
            fix="correct the samples; pixels are 0 to 1, the graph normalises them",
        )


def take_batch(arrays: Arrays, start: int, count: int, total: int) -> Arrays:
    """`count` samples from `start` on, beginning again at the first after the `total`th."""
    index = (start + np.arange(count)) % total
    return {name: array[index] for name, array in arrays.items()}


def check_lengths(path: Path, lengths: NDArray[Any], *, tokens: int) -> None:
    """Refuse with CalibrationError what says that a row has more than `tokens` valid ones."""
    if lengths.max() > tokens:
        raise CalibrationError(
            "array 'lengths' says more tokens than 'token_ids' has",
            where=str(path),
            got=f"up to {lengths.max()}",
            allowed=f"1 to {tokens}",
            fix="save how many tokens of each row are valid",
        )


def check_labels(path: Path, labels: NDArray[Any], *, count: int, graph: GraphSpec) -> NDArray[np.int64]:
    """Class indices [samples], int64.

    Raises:
        CalibrationError: not one whole number a sample, or outside the classes of `graph`.
    """
    classes = int(graph.outputs[0].shape[-1])
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != count:
        raise CalibrationError(
            "array 'labels' is not one class index a sample",
            where=str(path),
            got=f"{labels.dtype} {list(labels.shape)}",
            allowed=f"integers [{count}]",
            fix="save the index of each sample's class",
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise CalibrationError(
            "array 'labels' names a class that the model does not have",
            where=str(path),
            got=f"{labels.min()} to {labels.max()}",
            allowed=f"0 to {classes - 1}",
            fix="correct the labels, or num_classes",
        )
    return labels.astype(np.int64)
