"""Peak memory of a command, process by process, from /proc: the kernel's own high-water marks, not samples of them.

VmHWM     most resident memory at any time, mapped files included
RssAnon   most private memory seen (sampled, since the kernel keeps no mark of it)
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PAUSE_S = 0.02


@dataclass
class Usage:
    """One command: seconds, and for each of its processes (by command line) the peaks in MB."""

    seconds: float = 0.0
    status: int = 0
    output: str = ""
    peaks: dict[str, tuple[float, float]] = field(default_factory=dict)  # VmHWM, RssAnon

    @property
    def peak_mb(self) -> float:
        """VmHWM of the largest process."""
        return max(resident for resident, _ in self.peaks.values())

    @property
    def private_mb(self) -> float:
        """RssAnon of the process that had most."""
        return max(private for _, private in self.peaks.values())


def run_measured(command: Sequence[str], *, cwd: Path | None = None) -> Usage:
    """Run `command` to its end while looking at it and at everything below it."""
    usage, started = Usage(), time.perf_counter()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as printed,  # a pipe that nobody reads would fill up
        subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, cwd=cwd) as process,
    ):
        while process.poll() is None:
            for pid in [process.pid, *_list_descendants(process.pid)]:
                _look_at(pid, usage)
            time.sleep(_PAUSE_S)
        usage.seconds, usage.status = time.perf_counter() - started, process.returncode
        printed.seek(0)
        usage.output = printed.read()
    return usage


def _list_descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = [int(child) for child in children.read_text().split()]
        except OSError:
            continue
        found += [*own, *(deeper for child in own for deeper in _list_descendants(child))]
    return found


def _look_at(pid: int, usage: Usage) -> None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return  # it ended meanwhile
    values = {
        line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmHWM", "RssAnon"))
    }
    if len(values) == 2:
        old = usage.peaks.get(command, (0.0, 0.0))
        usage.peaks[command] = max(old[0], values["VmHWM"]), max(old[1], values["RssAnon"])
