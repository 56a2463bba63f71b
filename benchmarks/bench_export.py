"""Export of ViT-B in fp32, goldens and verification included, against stock torch.onnx.export: time and peak memory.

Each run is a process of its own, in turn (ours, stock, ours, stock, ...), and reports its own wall time and peak
resident memory; medians and their ratio are printed. Both build the same random-weight model first, which counts for
both.

    python benchmarks/bench_export.py [--spec image_vit_base] [--rounds 3]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def export_ours(spec: str, folder: Path) -> None:
    from metagen_deploy import pipeline

    pipeline.export(
        spec, output=folder / "x.bundle", targets=("cpu",), precisions=("fp32",), progress=lambda text, fraction: None
    )


def export_stock(spec: str, folder: Path) -> None:
    from exporters import lower
    from exporters.trace import choose_sizes
    from specs.handlers import get_handler
    from specs.load import load_spec

    loaded = load_spec(spec)
    handler = get_handler(loaded)
    for graph in handler.build(loaded):
        inputs = handler.make_inputs(loaded, graph, sizes=choose_sizes(loaded.dims, near=2), seed=0)
        lower.export_stock(graph, loaded.dims, inputs, folder / f"{graph.name}.onnx")


def run_once(kind: str, spec: str) -> tuple[float, float]:
    """Seconds and peak MB of one export in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        (export_ours if kind == "ours" else export_stock)(spec, Path(scratch))
        seconds = time.perf_counter() - started
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, max(peaks) / 1024  # ours checks the bundle in a child: the larger process counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default="image_vit_base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", choices=["ours", "stock"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(*run_once(arguments.once, arguments.spec))
        return
    results: dict[str, list[tuple[float, float]]] = {"ours": [], "stock": []}
    for _ in range(arguments.rounds):
        for kind, rows in results.items():
            command = [sys.executable, "-W", "ignore", __file__, "--once", kind, "--spec", arguments.spec]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            rows.append((float(printed[-2]), float(printed[-1])))
    medians = {kind: [statistics.median(c) for c in zip(*rows, strict=True)] for kind, rows in results.items()}
    for kind, (seconds, megabytes) in medians.items():
        print(f"{kind:>6}  {seconds:6.2f} s  {megabytes:7.0f} MB peak  (medians of {arguments.rounds})")
    time_ratio, memory_ratio = (ours / stock for ours, stock in zip(medians["ours"], medians["stock"], strict=True))
    print(f" ratio  {time_ratio:.2f}x time, {memory_ratio:.2f}x peak memory  (ours / stock)")


if __name__ == "__main__":
    main()
