"""The reference data that a bundle carries, read and checked against its graph. Nothing is unpickled.

<graph>.golden.npz       input:<name>, output:<name>: what torch answered in fp32
<graph>.evaluation.npz   input:<name>, labels: held-out data, where the spec names some
<graph>.held_out.npz     0:input:<name>, 0:output:<name>, ..., rounding:<target>-<precision>:<output>: of
                         a user's ONNX file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specs.arrays import UnreadableArrayError, read_npz
from specs.bundle import Graph, IoTensor, Manifest
from specs.bundle.files import resolve_inside
from specs.errors import BundleError

Array = np.ndarray[Any, np.dtype[Any]]


def read_golden(folder: Path, graph: Graph) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and reference outputs by name. Raises BundleError."""
    path = resolve_inside(folder, graph.golden)
    arrays = _read_arrays(path)
    needed = [f"input:{t.name}" for t in graph.inputs] + [f"output:{t.name}" for t in graph.outputs]
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise BundleError(
            f"the golden data of graph '{graph.name}' lacks {', '.join(missing)}",
            where=str(path),
            allowed=", ".join(sorted(arrays)),
            fix="export the bundle again",
        )
    for key, tensor in zip(needed, (*graph.inputs, *graph.outputs), strict=True):
        if not _has_shape(arrays[key], tensor):
            raise BundleError(
                f"the golden data of graph '{graph.name}' has another shape than the manifest says",
                where=f"{path}: {key}",
                got=str(list(arrays[key].shape)),
                allowed=str(list(tensor.shape)),
                fix="export the bundle again",
            )
    feed = {t.name: arrays[f"input:{t.name}"] for t in graph.inputs}
    for tensor in graph.inputs:
        if feed[tensor.name].dtype.name != tensor.dtype and tensor.dtype != "object":
            raise BundleError(
                f"the golden data of graph '{graph.name}' has another type than the manifest says",
                where=f"{path}: input:{tensor.name}",
                got=feed[tensor.name].dtype.name,
                allowed=tensor.dtype,
                fix="export the bundle again",
            )
    return feed, {t.name: arrays[f"output:{t.name}"] for t in graph.outputs}


def resize_feed(feed: Mapping[str, Array], graph: Graph, sizes: Mapping[str, int]) -> dict[str, Array]:
    """`feed` in other sizes: along every axis that `sizes` names its values are repeated, or left away at the end.

    So every value is one that the graph was given before: an id of its vocabulary, a length of its caches.
    """
    resized = {}
    for tensor in graph.inputs:
        value = feed[tensor.name]
        for axis, name in enumerate(tensor.shape):
            if isinstance(name, str) and name in sizes:
                value = np.take(value, np.arange(sizes[name]) % value.shape[axis], axis=axis)
        resized[tensor.name] = value
    return resized


def read_evaluation(folder: Path, graph: Graph) -> tuple[dict[str, Array], Array] | None:
    """Inputs by name and labels, None when the graph has no such data. Raises BundleError."""
    if graph.evaluation is None:
        return None
    path = resolve_inside(folder, graph.evaluation)
    arrays = _read_arrays(path)
    labels = arrays.get("labels")
    inputs = {t.name: arrays[f"input:{t.name}"] for t in graph.inputs if f"input:{t.name}" in arrays}
    fit = labels is not None and labels.ndim == 1 and len(labels) > 0 and labels.dtype.kind in "iu"
    fit = fit and len(inputs) == len(graph.inputs) > 0 and all(_is_row(inputs[t.name], t) for t in graph.inputs)
    if labels is None or not fit or any(len(value) != len(labels) for value in inputs.values()):
        raise BundleError(
            f"the evaluation data of graph '{graph.name}' does not fit it",
            where=str(path),
            got=", ".join(f"{name} {arrays[name].dtype} {arrays[name].shape}" for name in sorted(arrays)),
            allowed="labels of whole numbers, "
            + ", ".join(f"input:{t.name} {t.dtype} {list(t.shape)}" for t in graph.inputs)
            + ", all of one length",
            fix="export the bundle again",
        )
    return inputs, labels


def _has_shape(value: Array, tensor: IoTensor) -> bool:
    """Whether the rank is the manifest's, and every size that it fixes."""
    return value.ndim == len(tensor.shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(value.shape, tensor.shape, strict=True)
    )


@dataclass(frozen=True)
class Rounding:
    """How far rounding to a lower precision alone moves an output on any of the samples, in its units."""

    largest: float
    rms: float


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Samples that calibrated nothing: what the original answers, and what rounding alone makes of that."""

    feeds: tuple[dict[str, Array], ...] = ()
    answers: tuple[dict[str, Array], ...] = ()
    rounding: Mapping[str, Rounding] = field(default_factory=dict)  # by output; missing where it is not known


def read_held_out(folder: Path, graph: Graph, target: str, precision: str) -> HeldOut:
    """The held-out samples of a graph for one target and precision; empty where it is not judged on any.

    Half precision is judged on them where it is known what rounding explains, else int8 alone.

    Raises:
        BundleError: the file cannot be read, or an array is missing or of another kind.
    """
    if graph.held_out is None or precision == "fp32":
        return HeldOut()
    path = resolve_inside(folder, graph.held_out)
    arrays = _read_arrays(path)
    count = len({key.partition(":")[0] for key in arrays if not key.startswith("rounding:")})
    _require_samples(arrays, count, graph, path)
    feeds = tuple({t.name: arrays[f"{i}:input:{t.name}"] for t in graph.inputs} for i in range(count))
    answers = tuple({t.name: arrays[f"{i}:output:{t.name}"] for t in graph.outputs} for i in range(count))
    rounding = {}
    for tensor in graph.outputs:
        value = arrays.get(key := f"rounding:{target}-{precision}:{tensor.name}")
        if value is not None:
            if value.shape != (2,) or value.dtype.kind != "f" or not np.isfinite(value).all() or (value < 0).any():
                raise _refuse_held_out(graph, f"{path}: {key}", value, "2 finite numbers from 0: largest error and rms")
            rounding[tensor.name] = Rounding(*map(float, value))
    if not rounding and precision != "int8":
        return HeldOut()
    return HeldOut(feeds=feeds, answers=answers, rounding=rounding)


def _require_samples(arrays: Mapping[str, Array], count: int, graph: Graph, path: Path) -> None:
    """BundleError unless there are samples 0 to `count`, each with every input and output as the manifest has them."""
    listed = [("input", t) for t in graph.inputs] + [("output", t) for t in graph.outputs]
    for index in range(max(count, 1)):
        for kind, tensor in listed:
            value = arrays.get(key := f"{index}:{kind}:{tensor.name}")
            if value is None or value.dtype.name != tensor.dtype or not _has_shape(value, tensor):
                raise _refuse_held_out(graph, f"{path}: {key}", value, f"{tensor.dtype} {list(tensor.shape)}")


def _refuse_held_out(graph: Graph, where: str, value: Array | None, allowed: str) -> BundleError:
    return BundleError(
        f"the held-out data of graph '{graph.name}' does not fit it",
        where=where,
        got="nothing" if value is None else f"{value.dtype} {list(value.shape)}",
        allowed=allowed,
        fix="export the bundle again",
    )


def _is_row(value: Array, tensor: IoTensor) -> bool:
    """Whether `value` is rows of what `tensor` takes: its type, rank and fixed sizes."""
    sizes = zip(tensor.shape[1:], value.shape[1:], strict=False)
    fixed = all(wanted == got for wanted, got in sizes if isinstance(wanted, int))
    return value.dtype.name == tensor.dtype and 0 < value.ndim == len(tensor.shape) and fixed


def split_batches(inputs: Mapping[str, Array], graph: Graph, manifest: Manifest) -> Iterator[dict[str, Array]]:
    """Batches of the size that engines are tuned for; the last is filled up with its own last row."""
    size = graph.inputs[0].shape[0]
    batch = size if isinstance(size, int) else manifest.dims.get(size, (1, 1, 1))[1]
    count = len(next(iter(inputs.values())))
    for start in range(0, count, batch):
        chosen = np.minimum(np.arange(start, start + batch), count - 1)
        yield {name: value[chosen] for name, value in inputs.items()}


def _read_arrays(path: Path) -> dict[str, Array]:
    try:
        return read_npz(path)
    except UnreadableArrayError as error:
        raise BundleError(
            "reference data cannot be read", where=str(path), got=str(error), fix="export the bundle again"
        ) from None
