"""How long a user waits for nothing: `metagen-deploy --help` and `import metagen_deploy`, beside a bare interpreter.

    .venv/bin/python benchmarks/bench_cli_startup.py

The three are run in turn, each in a new process; medians of wall time. Aims: --help under 150 ms, import under 50 ms.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 40
BARE, HELP, IMPORT = "bare interpreter", "metagen-deploy --help", "import metagen_deploy"
LIMITS_MS = {HELP: 150.0, IMPORT: 50.0}


def find_script() -> list[str]:
    """The installed console script, or the module where it is not installed."""
    script = Path(sys.executable).with_name("metagen-deploy")
    return [str(script)] if script.exists() else [sys.executable, "-m", "metagen_deploy"]


def measure_ms(command: list[str]) -> float:
    """Wall milliseconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parent.parent)
    return 1000 * (time.perf_counter() - started)


def main() -> int:
    """Print the medians; 1 when an aim is missed."""
    commands = {
        BARE: [sys.executable, "-c", "pass"],
        HELP: [*find_script(), "--help"],
        IMPORT: [sys.executable, "-c", "import metagen_deploy"],
    }
    times: dict[str, list[float]] = {name: [measure_ms(command)] for name, command in commands.items()}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(measure_ms(command))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    medians[IMPORT] -= medians[BARE]  # what the import itself adds
    for name, median in medians.items():
        limit = LIMITS_MS.get(name)
        print(f"{name:<24}{median:8.1f} ms" + (f"   (aim: under {limit:.0f} ms)" if limit else ""))
    return int(any(medians[name] >= limit for name, limit in LIMITS_MS.items()))


if __name__ == "__main__":
    sys.exit(main())
