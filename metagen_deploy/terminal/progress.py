"""Progress of long steps, on stderr: a live line on a terminal, otherwise one line for a step that passes a second.

Everything that takes long gets a `Progress` and calls it with what is happening and the share that is done
(None when it is not known).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from specs.progress import Progress

_QUIET_SECONDS = 1.0


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a `Progress` for the length of one command."""
    with _show_live() if sys.stderr.isatty() else _show_lines() as progress:
        yield progress


@contextmanager
def _show_lines() -> Iterator[Progress]:
    """For logs and pipes: each step is named once, when it has lasted a second."""
    step = ""
    timer: threading.Timer | None = None
    speaking = threading.Lock()

    def report(text: str, fraction: float | None) -> None:
        nonlocal step, timer
        if text == step:
            return
        if timer:
            timer.cancel()
        step = text
        timer = threading.Timer(_QUIET_SECONDS, announce, (text,))
        timer.daemon = True
        timer.start()

    def announce(text: str) -> None:
        with speaking:
            if text == step:  # a timer may fire while it is cancelled
                sys.stderr.write(f"{text} …\n")
                sys.stderr.flush()

    try:
        yield report
    finally:
        if timer:
            timer.cancel()
        with speaking:  # what follows is said after it
            step = ""


@contextmanager
def _show_live() -> Iterator[Progress]:
    """For a terminal: one moving line, gone when the command ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bar,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        step = ""

        def report(text: str, fraction: float | None) -> None:
            nonlocal step
            if text != step:
                step = text
                bar.reset(task, description=text, total=None)
            if fraction is not None:
                bar.update(task, total=1.0, completed=fraction)

        yield report
