"""Every shipped spec at its full size, exported for real: seconds and peak memory, golden data and check included.

python benchmarks/bench_zoo_export.py [NAME ...] [--precision fp16] [--largest 1.1e9]

One after the other, each in processes of its own, for the CPU target; bundles are deleted. Specs with more than
`--largest` parameters are left out unless they are named. `--precision own` leaves it to the spec. Of each precision,
the output that came nearest to its limit is shown, as the share of the limit that it takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from _memory import run_measured

from specs.graphs import count_parameters
from specs.load import load_spec
from specs.sources import list_zoo


def main() -> int:
    """Print a Markdown row a spec, as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--largest", type=float, default=1.1e9)
    options = parser.parse_args()
    failed = 0
    print(
        "| spec | parameters | seconds | peak memory (largest process) | private part | verdict | nearest to a limit |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.names or list_zoo():
        parameters = sum(count_parameters(load_spec(name)).values())
        if parameters > options.largest and name not in options.names:
            print(f"| {name} | {parameters / 1e6:.0f} M | not run here | | | | |", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            command = [
                *(sys.executable, "-m", "metagen_deploy", "export", name, "-o", str(Path(folder) / "out.bundle")),
                *("--target", "cpu"),
                *(() if options.precision == "own" else ("--precision", options.precision)),
            ]
            usage = run_measured(command)
            nearest = _find_nearest(Path(folder) / "out.bundle/reports/parity.json")
        verdict = "verified" if usage.status == 0 else f"exit {usage.status}: {_find_error(usage.output)}"
        failed += usage.status != 0
        print(
            f"| {name} | {parameters / 1e6:.0f} M | {usage.seconds:.0f} | {usage.peak_mb:.0f} MB"
            f" | {usage.private_mb:.0f} MB | {verdict} | {nearest} |",
            flush=True,
        )
    return 1 if failed else 0


def _find_nearest(report: Path) -> str:
    if not report.exists():
        return ""
    data = json.loads(report.read_text(encoding="utf-8"))
    worst: dict[str, tuple[float, str]] = {}
    for row in data["rows"]:
        if row["limit_relative"]:
            share = row["needed_relative"] / row["limit_relative"]
            text = (
                f"{row['precision']} {row['graph']} {row['difference']['name']}"
                f" {row['needed_relative']:.1e} of {row['limit_relative']:.1e}"
            )
            worst[row["precision"]] = max(worst.get(row["precision"], (0.0, "")), (share, text))
    unknown = [f"no floor: {graph}" for graph in data.get("no_noise_floor", {})]
    return "; ".join([text for _, text in worst.values()] + unknown)


def _find_error(output: str) -> str:
    return next((line for line in output.splitlines() if line.startswith("error:")), output.strip()[-200:])


if __name__ == "__main__":
    raise SystemExit(main())
