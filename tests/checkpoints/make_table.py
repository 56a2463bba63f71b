"""The table of docs/checkpoints.md: python -m tests.checkpoints.make_table. Runs the tests and prints Markdown.

One row a family and stage: the comparison that came nearest to its limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.checkpoints.compare import Row


def main() -> int:
    """Exit status of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.touch()
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", Path(__file__).parent],
            env={**os.environ, "METAGEN_CHECKPOINT_ROWS": str(path)},
            check=False,
            stdout=sys.stderr,
        ).returncode
        rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    print_table(rows)
    return status


def print_table(rows: list[Row]) -> None:
    """Markdown. A row beyond its limit is a mutant's: the tests that expect it to fail have passed."""
    rows = [row for row in rows if row.stage == "tokens" or row.max_abs <= row.limit]
    sys.stdout.write("| family | comparisons | worst case | max abs | noise floor | in floors | greedy tokens |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    for family in dict.fromkeys(row.family for row in rows):
        numbers = [row for row in rows if row.family == family and row.stage != "tokens"]
        tokens = [row for row in rows if row.family == family and row.stage == "tokens"]
        equal = f"equal in {sum(not row.max_abs for row in tokens)} of {len(tokens)}" if tokens else ""
        if not numbers:
            sys.stdout.write(f"| {family} | 0 | | | | | {equal} |\n")
            continue
        worst = max(numbers, key=lambda row: row.max_abs / row.limit)
        floors = f"{worst.max_abs / worst.floor:.1f}" if worst.floor else "-"
        sys.stdout.write(
            f"| {family} | {len(numbers)} | {worst.case}, {worst.stage}: {worst.output} | {worst.max_abs:.1e} "
            f"| {worst.floor:.1e} | {floors} | {equal} |\n"
        )


if __name__ == "__main__":
    raise SystemExit(main())
