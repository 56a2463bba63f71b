"""Plain tables and numbers for people: what `render` and `describe` are written with.

Colour and box characters appear on a terminal only (rich honours NO_COLOR); a pipe gets aligned text, one row a line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | Text

_PIPE_WIDTH = 1 << 20  # columns: a row that is read by a program is never folded, however long it is


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table; a column whose name ends in '>' is aligned right. Columns without any name have no header."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if title:
        print_line(title, style="bold")
    _write(table)
    print_line()


def print_line(text: Cell = "", *, style: str = "") -> None:
    """Print one line of an answer."""
    _write(text if isinstance(text, Text) else Text(text, style=style))


def _write(item: Table | Text) -> None:
    """Render to stdout as wide as the terminal, or as wide as it needs in a pipe, without trailing blanks."""
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, emoji=False, markup=False)
    with console.capture() as captured:
        console.print(item, soft_wrap=isinstance(item, Text))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    if isinstance(item, Table):
        lines = [line for line in lines if line]
    sys.stdout.write("\n".join(lines) + "\n")


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
