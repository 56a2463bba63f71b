"""ViT-B/16 at batch 1 on this CPU: our typed graphs against the stock path and torch eager, in turn in one process.

The stock path is torch.onnx.export with its defaults, run by ONNX Runtime with its defaults. Prints medians and
ratios over stock. (`metagen-deploy bench` does the same for one precision of any bundle.)

    python benchmarks/bench_vit_cpu.py [--spec image_vit_base]
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np

from engines.runtime import load
from exporters.baselines import Baseline
from metagen_deploy import pipeline
from metagen_deploy.bench import Runner, measure_in_turn, read_single_sample
from specs.schema import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default="image_vit_base")
    spec = parser.parse_args().spec
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "vit.bundle"
        manifest, _ = pipeline.export(
            spec, output=bundle, targets=("cpu",), precisions=PRECISIONS, progress=lambda text, fraction: None
        )
        graph = manifest.graphs[0]
        feed = read_single_sample(bundle, manifest, graph)
        contenders: dict[str, Runner] = {}
        for kind in ("stock-onnx", "torch"):
            contenders[kind] = Baseline(kind, bundle / "spec.yaml").make_runner(graph.name, feed)
        for precision in PRECISIONS:
            session = load(bundle, precision=precision).graphs[graph.name]
            contenders[f"ours {precision}"] = functools.partial(session.run, feed)
        times = {name: np.percentile(runs, (10, 50, 90)) for name, runs in measure_in_turn(contenders).items()}
    stock = times["stock-onnx"][1]
    print(f"{spec}, batch 1, medians (10th to 90th percentile)")
    for name, (low, median, high) in times.items():
        print(f"  {name:<12} {median:8.2f} ms  ({low:.2f} to {high:.2f})  {stock / median:5.2f}x stock")


if __name__ == "__main__":
    main()
