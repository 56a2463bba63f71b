"""Plain tables and numbers for people: what `render` and `describe` are written with.

Colour and box characters appear on a terminal only (rich honours NO_COLOR); a pipe gets aligned text, one row a line.
On a terminal cells are folded between words, never inside one: a table that is too wide even so becomes a list.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Cell = str | Text

_GAP = 3  # columns between two cells
_PIPE_WIDTH = 1 << 20  # columns: a row that is read by a program is never folded, however long it is


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table; a column whose name ends in '>' is aligned right. Columns without any name have no header."""
    names, cells = [column.rstrip(">") for column in columns], [tuple(row) for row in rows]
    console = _open_console()
    if title:
        print_line(title, style="bold")
    widths = _choose_widths([names, *cells], console.width)
    if widths is None:
        for line in _list_pairs(names, cells, console.width - _GAP):
            _write(line)
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
        for column, name, width in zip(columns, names, widths, strict=True):
            right = column.endswith(">")
            table.add_column(name, justify="right" if right else "left", overflow="fold", width=width)
        for row in cells:
            table.add_row(*row)
        _write(table)
    print_line()


def _choose_widths(rows: Sequence[Sequence[Cell]], most: int) -> list[int] | None:
    """As wide as the cells where the table fits into `most`, else folded between words; None where it still does not.

    The widest column gives way first, down to its longest word.
    """
    columns = [[str(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    words = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    room = most - 2 - _GAP * (len(columns) - 1)
    while sum(widths) > room:
        folded = max(range(len(widths)), key=lambda index: (widths[index] > words[index], widths[index]))
        if widths[folded] == words[folded]:
            return None
        widths[folded] -= 1
    return widths


def _list_pairs(names: Sequence[str], rows: Iterable[Sequence[Cell]], most: int) -> Iterator[Padding]:
    """Each row as its first cell, and below it `name: cell` for the others, as many to a line as there is room."""
    for heading, *cells in rows:
        if str(heading):
            yield _indent(heading, 1)
        line = Text()
        for name, cell in zip(names[1:], cells, strict=True):
            pair = Text(f"{name}: " if name else "").append(cell)
            if not str(cell):
                continue
            if line and cell_len(line.plain) + _GAP + cell_len(pair.plain) > most:
                yield _indent(line, _GAP)
                line = Text()
            line.append(" " * _GAP if line else "").append(pair)
        if line:
            yield _indent(line, _GAP)


def _indent(text: Cell, by: int) -> Padding:
    return Padding(text, (0, 0, 0, by))


def print_line(text: Cell = "", *, style: str = "") -> None:
    """Print one line of an answer."""
    _write(text if isinstance(text, Text) else Text(text, style=style))


def _write(item: Padding | Table | Text) -> None:
    """Render to stdout as wide as the terminal, or as wide as it needs in a pipe, without trailing blanks."""
    console = _open_console()
    with console.capture() as captured:
        console.print(item, soft_wrap=isinstance(item, Text))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    if isinstance(item, Table):
        lines = [line for line in lines if line]
    sys.stdout.write("\n".join(lines) + "\n")


def _open_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, emoji=False, markup=False)


def mark(passed: bool, text: str = "") -> Text:
    """A verdict: green or red, and always a word, so that it reads without colour."""
    return Text(text or ("ok" if passed else "FAILED"), style="green" if passed else "bold red")


def format_bytes(count: float) -> str:
    """`1.50 GB`, `346 MB`, `12 kB` (powers of 1000), three digits."""
    return _scale(count, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: float) -> str:
    """`86.6 M`, `50.0 M`, `1.2 k`: parameters and multiply-accumulates."""
    return _scale(count, ("", "k", "M", "G", "T")).strip()


def _scale(count: float, units: Sequence[str]) -> str:
    step = 0
    while abs(count) >= 999.5 and step < len(units) - 1:
        count /= 1000
        step += 1
    if step == 0:
        return f"{count:.0f} {units[0]}"
    return f"{count:.{max(0, 3 - len(str(int(count))))}f} {units[step]}"


def format_share(fraction: float) -> str:
    """`87.5 %`."""
    return f"{100 * fraction:.1f} %"
