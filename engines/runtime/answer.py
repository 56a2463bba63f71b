"""What a command line hands over: through a bundle's own pipeline, or as tensors straight into a graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.array_files import load_archive, load_array
from engines.runtime.graph_session import GraphSession
from engines.runtime.media.image import load_image
from engines.runtime.request import Answer, Request
from engines.runtime.session import Session
from specs.bundle import IoTensor
from specs.errors import InputError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


def answer(session: Session, request: Request) -> Answer:
    """Run a bundle on what a user handed over.

    Raises:
        InputError: nothing was handed over, or not what this bundle takes.
    """
    if request.graph is not None:
        _choose_graph(session, request.graph)  # refuses an unknown name, whether or not it is needed
    tensors = request.inputs or (len(request.files) == 1 and request.files[0].lower().endswith(".npz"))
    if tensors:
        return _answer_tensors(session, request)
    found = session.pipeline.answer(request)
    return _answer_tensors(session, request) if found is None else found


def _answer_tensors(session: Session, request: Request) -> Answer:
    if request.prompts:
        raise InputError(
            "a prompt does not go with tensors",
            got=f"--prompt {request.prompts[0]!r}",
            allowed="FILE.npz, --input NAME=FILE",
            fix="leave --prompt away",
        )
    if request.named:
        raise InputError(
            "tensors of a graph do not go with files by modality",
            got=f"--input {'='.join(request.named[0])}",
            allowed="--input NAME=FILE of one kind",
            fix=f"give modalities alone ({', '.join(session.pipeline.modality_names)}), or tensors of one --graph",
        )
    graph = _choose_graph(session, request.graph)
    results = graph.run(_load_tensors(graph, request))
    return Answer(
        header=("output", "dtype", "shape", "min", "mean", "max"),
        rows=tuple((name, str(value.dtype), tuple(value.shape), *_summarise(value)) for name, value in results.items()),
        arrays=results,
    )


def _choose_graph(session: Session, name: str | None) -> GraphSession:
    if name is None and len(session.graphs) == 1:
        return next(iter(session.graphs.values()))
    if name not in session.graphs:
        raise InputError(
            "say which graph these tensors are for" if name is None else f"this bundle has no graph '{name}'",
            allowed=name_nearest(name or "", session.graphs),
            fix="add --graph NAME",
        )
    return session.graphs[name]


def _load_tensors(graph: GraphSession, request: Request) -> dict[str, Array]:
    known = {tensor.name: tensor for tensor in graph.graph.inputs}
    loaded: dict[str, Array] = {}
    for file in request.files:
        loaded.update(load_archive(file, known))
    for pair in request.inputs:
        name, equals, file = pair.partition("=")
        if not equals or name not in known:
            raise InputError(f"--input {pair!r} names no input", allowed=name_nearest(name, known), fix="NAME=FILE")
        loaded[name] = _load_tensor(known[name], file)
    return loaded


def _load_tensor(tensor: IoTensor, file: str) -> Array:
    if not file.lower().endswith((".npy", ".npz")):
        if len(tensor.shape) != 4 or tensor.dtype != "float32" or not all(isinstance(d, int) for d in tensor.shape[1:]):
            raise InputError(
                f"input '{tensor.name}' is no picture",
                where=file,
                allowed=".npy",
                fix="write its values with numpy.save, and hand over --input NAME=FILE.npy",
            )
        channels, height, width = (int(d) for d in tensor.shape[1:])
        return load_image(file, channels=channels, height=height, width=width)
    return load_array(file)


def _summarise(value: Array) -> tuple[float | None, ...]:
    """Minimum, mean and maximum; None where there is no such number."""
    if value.dtype.kind not in "fiub" or value.size == 0:
        return (None, None, None)
    with np.errstate(all="ignore"):  # values that are not finite, or whose sum is not
        figures = (float(value.min()), float(value.mean()), float(value.max()))
    return tuple(figure if math.isfinite(figure) else None for figure in figures)
