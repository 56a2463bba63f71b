"""What a command line hands over (files, prompts, texts) through a bundle's own pipeline, as rows to print."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.graph_session import GraphSession
from engines.runtime.image import load_image
from engines.runtime.pipelines import ImageClassification, ImageTextSimilarity, TextGeneration
from engines.runtime.session import Session
from specs.bundle import IoTensor
from specs.errors import InputError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


#: A value of an answer; a tuple is a shape, None a number that there is none of.
Cell = str | float | tuple[int, ...] | None

_DAMAGED = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked: which of these a bundle uses depends on its pipeline, and one it does not use is an error."""

    files: tuple[str, ...] = ()  # pictures, or one .npz of tensors
    prompts: tuple[str, ...] = ()  # prompts to go on from, or texts to compare pictures with
    inputs: tuple[str, ...] = ()  # "name=file": tensors for one graph, whatever the pipeline
    graph: str | None = None  # which graph `inputs` or an .npz are for, when there are several
    top_k: int = 5
    max_new_tokens: int | None = None  # as many as the pipeline gives by default
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A table, and the arrays behind it where the answer is tensors."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def spell_rows(self) -> list[tuple[str, ...]]:
        """The rows as a person reads them: a picture is named once, numbers are short."""
        spelled, before = [], ""
        for first, *rest in self.rows:
            repeated = self.header[0] == "picture" and first == before
            cells = [_spell(cell, name) for cell, name in zip(rest, self.header[1:], strict=True)]
            spelled.append(("" if repeated else str(first), *cells))
            before = str(first)
        return spelled

    def to_text(self) -> str:
        """Columns aligned by spaces, the last one as it is."""
        table = [self.header, *self.spell_rows()]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.header) - 1)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in table
        )

    def to_json(self) -> str:
        """A list of objects, one a row, with numbers as numbers."""
        return json.dumps([dict(zip(self.header, row, strict=True)) for row in self.rows], indent=1, allow_nan=False)


def _spell(cell: Cell, column: str) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}" if column == "probability" else f"{cell:.6g}"
    return str(list(cell) if isinstance(cell, tuple) else "" if cell is None else cell)


def answer(session: Session, request: Request) -> Answer:
    """Run a bundle on what a user handed over.

    Raises:
        InputError: nothing was handed over, or not what this bundle takes.
    """
    if request.graph is not None:
        _choose_graph(session, request.graph)  # refuses an unknown name, whether or not it is needed
    tensors = request.inputs or (len(request.files) == 1 and request.files[0].endswith(".npz"))
    if tensors:
        return _answer_tensors(session, request)
    pipeline = session.pipeline
    if isinstance(pipeline, ImageClassification):
        _require(request, "pictures", files=True)
        return _answer_classification(pipeline, request)
    if isinstance(pipeline, TextGeneration):
        _require(request, "a prompt", prompts=True)
        return _answer_generation(pipeline, request)
    if isinstance(pipeline, ImageTextSimilarity):
        _require(request, "pictures, and texts to compare them with", files=True, prompts=True)
        return _answer_similarity(pipeline, request)
    return _answer_tensors(session, request)


def _require(request: Request, what: str, *, files: bool = False, prompts: bool = False) -> None:
    if bool(request.files) != files or bool(request.prompts) != prompts:
        raise InputError(
            f"this bundle takes {what}",
            got=f"{len(request.files)} files, {len(request.prompts)} prompts",
            fix=f"metagen-deploy run BUNDLE{' FILE ...' if files else ''}{' --prompt TEXT ...' if prompts else ''}",
        )


def _answer_classification(pipeline: ImageClassification, request: Request) -> Answer:
    found = pipeline.classify_all(request.files, top_k=request.top_k)
    rows = [
        (file, label, round(probability, 6))
        for file, best in zip(request.files, found, strict=True)
        for label, probability in best
    ]
    return Answer(header=("picture", "label", "probability"), rows=tuple(rows))


def _answer_generation(pipeline: TextGeneration, request: Request) -> Answer:
    texts = pipeline.generate(
        request.prompts,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=0 if request.temperature == 0 else request.top_k,
        seed=request.seed,
    )
    return Answer(header=("prompt", "continuation"), rows=tuple(zip(request.prompts, texts, strict=True)))


def _answer_similarity(pipeline: ImageTextSimilarity, request: Request) -> Answer:
    rows = []
    for file in request.files:
        for text, probability in pipeline.classify(file, request.prompts):
            rows.append((file, text, round(probability, 6)))
    return Answer(header=("picture", "text", "probability"), rows=tuple(rows))


def _answer_tensors(session: Session, request: Request) -> Answer:
    if request.prompts:
        raise InputError(
            "a prompt does not go with tensors",
            got=f"--prompt {request.prompts[0]!r}",
            allowed="FILE.npz, --input NAME=FILE",
            fix="leave --prompt away",
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
        loaded.update(_load_archive(file, known))
    for pair in request.inputs:
        name, equals, file = pair.partition("=")
        if not equals or name not in known:
            raise InputError(f"--input {pair!r} names no input", allowed=name_nearest(name, known), fix="NAME=FILE")
        loaded[name] = _load_tensor(known[name], file)
    return loaded


def _load_tensor(tensor: IoTensor, file: str) -> Array:
    if not file.endswith((".npy", ".npz")):
        if len(tensor.shape) != 4 or tensor.dtype != "float32" or not all(isinstance(d, int) for d in tensor.shape[1:]):
            raise InputError(f"input '{tensor.name}' is no picture", where=file, allowed=".npy")
        channels, height, width = (int(d) for d in tensor.shape[1:])
        return load_image(file, channels=channels, height=height, width=width)
    return _load_array(file)


def _load_array(file: str) -> Array:
    """One .npy; never unpickles. Mapped first, so that a header that claims more than the file holds is refused."""
    try:
        return np.array(np.lib.format.open_memmap(file, mode="r"))
    except _DAMAGED as error:
        raise InputError(
            "this file holds no array", where=file, got=_shorten(error), allowed=".npy", fix="write it with numpy.save"
        ) from None


def _load_archive(file: str, known: Iterable[str]) -> dict[str, Array]:
    """Arrays of an .npz whose key is a known name, alone or after `input:` as in golden data; never unpickles."""
    try:
        with zipfile.ZipFile(file), np.load(file, allow_pickle=False) as archive:
            keys = {key.removeprefix("input:"): key for key in archive.files}
            return {name: archive[keys[name]] for name in known if name in keys}
    except _DAMAGED as error:
        raise InputError(
            "this file holds no arrays",
            where=file,
            got=_shorten(error),
            allowed=".npz",
            fix="write it with numpy.savez(FILE, NAME_OF_THE_INPUT=array)",
        ) from None


def _shorten(error: BaseException) -> str:
    """What went wrong, without the file's name again."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _summarise(value: Array) -> tuple[float | None, ...]:
    """Minimum, mean and maximum; None where there is no such number."""
    if value.dtype.kind not in "fiub" or value.size == 0:
        return (None, None, None)
    figures = (float(value.min()), float(value.mean()), float(value.max()))
    return tuple(figure if math.isfinite(figure) else None for figure in figures)
