"""A table of weights as a picture: rows look at columns, the brighter the more. numpy alone.

Blocks of rows and columns (modalities, each of so many tokens) are named and divided by lines. The scale under the
table goes from 0 to the largest value, which stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.media.glyphs import CHARACTER_WIDTH, LINE_HEIGHT, write_text
from engines.runtime.request import Picture

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

#: (name, number of tokens) of each block along one side.
Blocks = Sequence[tuple[str, int]]

#: Viridis (van der Walt and Smith 2015) at nine places.
_COLOURS = np.array(
    [
        [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
        [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
    ],
    np.float64,
) / 255  # fmt: skip
_LONGEST_SIDE = 960  # pixels of the table, where it has fewer cells than that
_LARGEST_CELL = 48
_LINE = 2
_MARGIN = 12
_SCALE_WIDTH, _SCALE_HEIGHT = 160, 12


def draw_heat_map(weights: Array, *, rows: Blocks, columns: Blocks, title: str) -> Picture:
    """Weights [rows, columns], 0 or more, as a picture.

    Args:
        rows, columns: the blocks of each side; their numbers add up to the side, () stands for one nameless block.
    """
    row_blocks, column_blocks = list(rows) or [("", weights.shape[0])], list(columns) or [("", weights.shape[1])]
    cell = max(1, min(_LARGEST_CELL, _LONGEST_SIDE // max(weights.shape)))
    table, tops, lefts = _paint_table(weights, row_blocks, column_blocks, cell)
    names = [name for name, _ in row_blocks]
    left = 2 * _MARGIN + CHARACTER_WIDTH * max(1, *map(len, names))
    top = 2 * _MARGIN + LINE_HEIGHT
    lines = _stagger([name for name, _ in column_blocks], lefts)
    below = top + table.shape[0] + _MARGIN // 2
    scale_top = below + LINE_HEIGHT * (1 + max(lines)) + _MARGIN
    largest = f"{float(weights.max()):.3g}"
    right = max(
        left + table.shape[1],
        *(left + x + CHARACTER_WIDTH * len(name) for x, (name, _) in zip(lefts, column_blocks, strict=True)),
        _MARGIN + CHARACTER_WIDTH * len(title),
        left + _SCALE_WIDTH + CHARACTER_WIDTH * (len(largest) + 2),
    )
    picture = np.ones((scale_top + _SCALE_HEIGHT + _MARGIN, right + _MARGIN, 3), np.float32)
    write_text(picture, title, top=_MARGIN, left=_MARGIN)
    picture[top : top + table.shape[0], left : left + table.shape[1]] = table
    for y, name in zip(tops, names, strict=True):
        write_text(picture, name, top=top + y, left=_MARGIN)
    for x, line, (name, _) in zip(lefts, lines, column_blocks, strict=True):
        write_text(picture, name, top=below + LINE_HEIGHT * line, left=left + x)
    scale = _colour(np.broadcast_to(np.linspace(0, 1, _SCALE_WIDTH), (_SCALE_HEIGHT, _SCALE_WIDTH)))
    picture[scale_top : scale_top + _SCALE_HEIGHT, left : left + _SCALE_WIDTH] = scale
    write_text(picture, "0", top=scale_top, left=left - 3 * CHARACTER_WIDTH // 2)
    write_text(picture, largest, top=scale_top, left=left + _SCALE_WIDTH + CHARACTER_WIDTH)
    return Picture(pixels=picture)


def _paint_table(weights: Array, rows: Blocks, columns: Blocks, cell: int) -> tuple[Array, list[int], list[int]]:
    """Cells with white lines between blocks; and where each block begins, down and across."""
    colours = _colour(weights / max(float(weights.max()), np.finfo(np.float32).tiny))
    places, starts = [], []
    for blocks in (rows, columns):
        at, where, begin = 0, [], []
        for _, count in blocks:
            begin.append(at)
            where.append(at + np.arange(count * cell))
            at += count * cell + _LINE
        places.append(np.concatenate(where))
        starts.append(begin)
    table = np.ones((places[0][-1] + 1, places[1][-1] + 1, 3), np.float32)
    table[np.ix_(places[0], places[1])] = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    return table, starts[0], starts[1]


def _stagger(names: Sequence[str], lefts: Sequence[int]) -> list[int]:
    """A line for each name so that none overlaps its neighbours'."""
    ends: list[int] = []
    lines = []
    for name, left in zip(names, lefts, strict=True):
        line = next((i for i, end in enumerate(ends) if end <= left), len(ends))
        end = left + CHARACTER_WIDTH * (len(name) + 1)
        ends[line : line + 1] = [end]
        lines.append(line)
    return lines


def _colour(shares: Array) -> Array:
    """[..., 3] of values in [0, 1]."""
    place = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(shares, place, _COLOURS[:, c]) for c in range(3)], axis=-1).astype(np.float32)
