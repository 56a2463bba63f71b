"""What a command line asks of a bundle, and what it gets: rows to print, tensors, pictures, sounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specs.errors import InputError
from specs.report import spell_number

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

#: A value of an answer; a tuple is a shape, None a number that there is none of.
Cell = str | int | float | tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked: which of these a bundle uses depends on its pipeline, and one it does not use is an error."""

    files: tuple[str, ...] = ()  # pictures or sounds, or one .npz of tensors
    prompts: tuple[str, ...] = ()  # prompts to go on from, texts to compare, or what to make
    named: tuple[tuple[str, str], ...] = ()  # (modality, file) where a bundle has several
    inputs: tuple[str, ...] = ()  # "name=file": tensors for one graph, whatever the pipeline
    graph: str | None = None  # which graph `inputs` or an .npz are for, when there are several
    top_k: int = 5  # labels to name; with a temperature, tokens to draw among
    max_new_tokens: int | None = None  # as many as the pipeline gives by default
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False  # put prompts into the model's chat template


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that a model made: float32 [height, width, 3] in [0, 1]."""

    pixels: Array


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound that a model made: float32 [channels, samples] in [-1, 1]."""

    samples: Array
    sample_rate_hz: int


@dataclass(frozen=True, kw_only=True)
class Film:
    """Pictures one after the other: float32 [frames, height, width, 3] in [0, 1]."""

    frames: Array
    frames_per_second: float


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A surface of triangles: vertices [V, 3], three vertices a face [F, 3], colours [V, 3] in [0, 1]."""

    vertices: Array
    faces: Array
    colours: Array


#: What a model can make.
Medium = Picture | Sound | Film | Mesh


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A table, and what lies behind it: arrays where the answer is tensors, pictures or sounds that were made."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    arrays: Mapping[str, Array] = field(default_factory=dict)
    media: tuple[Medium, ...] = ()  # one a prompt

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


def require(request: Request, what: str, *, files: bool = False, prompts: bool = False) -> None:
    """Refuse a request that is not made of files, of prompts, or of both, as the pipeline needs.

    Args:
        what: what the pipeline takes, in words: "pictures, and texts to compare them with".
    """
    if bool(request.files) != files or bool(request.prompts) != prompts:
        raise InputError(
            f"this bundle takes {what}",
            got=f"{spell_number(len(request.files), 'file')}, {spell_number(len(request.prompts), 'prompt')}",
            fix=f"metagen-deploy run BUNDLE{' FILE ...' if files else ''}{' --prompt TEXT ...' if prompts else ''}",
        )
