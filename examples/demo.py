"""The whole path on handwritten digits: spec -> bundle -> TensorRT-RTX engines -> parity -> answers, as a picture.

    python examples/demo.py [FOLDER]

Exports the trained `image_vit_digits` at FP32, FP16 and INT8 for the CPU and for an RTX 4090 (compiled here, no GPU
needed), checks every stage against torch's golden data, and classifies held-out digits that it was not trained on.
Leaves the bundle and `digits.png` in FOLDER (default: demo). Needs the extras export, rtx and dev.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.runtime import load
from metagen_deploy import pipeline
from metagen_deploy.terminal import render
from metagen_deploy.terminal.progress import show_progress
from metagen_deploy.terminal.tables import format_bytes, format_share, print_line, print_table
from specs.bundle import Manifest
from specs.errors import MetagenError
from specs.report import BuildReport, ParityReport
from specs.schema import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TARGETS = ("cpu", "rtx-4090")
BACKEND = "tensorrt-rtx"
GRID_ROWS, GRID_COLUMNS = 6, 12
MISS = "#d1242f"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One precision: accuracy on the CPU, and the engine compiled ahead of time."""

    precision: str
    top1: float
    graph_bytes: int
    latency_ms: float  # of one digit on this CPU, median
    engine_bytes: int
    build_seconds: float


def main(folder: Path) -> None:
    """Run every step and say what came out."""
    bundle = folder / "image_vit_digits.bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with show_progress() as progress:
        manifest, parity = pipeline.export(
            "image_vit_digits", output=bundle, targets=TARGETS, precisions=PRECISIONS, progress=progress
        )
        built = pipeline.build(bundle, target="rtx-4090", backend=BACKEND, progress=progress)
    render.print_parity(parity)
    images, labels = read_evaluation(bundle, manifest)
    predictions = {precision: predict(bundle, precision, images) for precision in PRECISIONS}
    results = summarise(bundle, manifest, parity, built, images)
    print_results(results, samples=len(labels))
    picture = draw(folder / "digits.png", images, labels, predictions["int8"], results)
    wrong = int((predictions["int8"] != labels).sum())
    print_line(f"{len(labels) - wrong} of {len(labels)} held-out digits right at INT8: look at {picture}")
    print_line(f"try: .venv/bin/metagen-deploy inspect {bundle}")


def read_evaluation(bundle: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """The held-out digits [N, 1, H, W] in [0, 1] and their labels [N]."""
    file = manifest.graphs[0].evaluation
    assert file, "image_vit_digits carries held-out data"
    with np.load(bundle / file, allow_pickle=False) as data:
        return data["input:image"], data["labels"]


def predict(bundle: Path, precision: str, images: np.ndarray) -> np.ndarray:
    """The label of every image, from the CPU's graph at `precision`."""
    with load(bundle, backend="onnxruntime", precision=precision) as session:
        largest_batch = session.manifest.dims["batch"][2]
        batches = (images[start : start + largest_batch] for start in range(0, len(images), largest_batch))
        return np.concatenate([session.run({"image": batch})["logits"].argmax(-1) for batch in batches])


def summarise(
    bundle: Path, manifest: Manifest, parity: ParityReport, built: BuildReport, images: np.ndarray
) -> list[Result]:
    """Join what the reports say of each precision."""
    top1 = {row.stage: row.value for row in parity.metrics}
    engines = {row.precision: row for row in built.rows}
    typed = {graph.precision: graph.file for graph in manifest.graphs[0].typed if graph.target == "cpu"}
    return [
        Result(
            precision=precision,
            top1=top1[typed[precision]],
            graph_bytes=count_graph_bytes(bundle, typed[precision]),
            latency_ms=measure_latency(bundle, precision, images[:1]),
            engine_bytes=engines[precision].bytes,
            build_seconds=engines[precision].seconds,
        )
        for precision in PRECISIONS
    ]


def count_graph_bytes(bundle: Path, file: str) -> int:
    """The graph's file and its share of the weight pools."""
    import onnx

    model = onnx.load(bundle / file, load_external_data=False)
    external = (
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )
    return (bundle / file).stat().st_size + sum(external)


def measure_latency(bundle: Path, precision: str, image: np.ndarray, runs: int = 200) -> float:
    """Median milliseconds of one image."""
    times = []
    with load(bundle, backend="onnxruntime", precision=precision) as session:
        for _ in range(runs):
            started = time.perf_counter()
            session.run({"image": image})
            times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def print_results(results: list[Result], *, samples: int) -> None:
    """The table that the demo is about."""
    print_table(
        f"image_vit_digits on {samples} held-out digits",
        ("precision", "top-1>", "graph>", "one digit, this CPU>", "RTX 4090 engine>", "compiled in>"),
        [
            (
                result.precision,
                format_share(result.top1),
                format_bytes(result.graph_bytes),
                f"{result.latency_ms:.2f} ms",
                format_bytes(result.engine_bytes),
                f"{result.build_seconds:.1f} s",
            )
            for result in results
        ],
    )


def draw(path: Path, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, results: list[Result]) -> Path:
    """Save a grid of digits under their predicted labels, every miss among them and in red, above the table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = choose_shown(predicted != labels, GRID_ROWS * GRID_COLUMNS)
    figure = pyplot.figure(figsize=(12, 8.6), facecolor="white")
    grid = figure.add_gridspec(
        GRID_ROWS, GRID_COLUMNS, left=0.03, right=0.97, top=0.86, bottom=0.235, hspace=0.62, wspace=0.25
    )
    for place, index in enumerate(shown):
        right = predicted[index] == labels[index]
        axes = figure.add_subplot(grid[place // GRID_COLUMNS, place % GRID_COLUMNS])
        axes.imshow(images[index, 0], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color="#d0d7de" if right else MISS, linewidth=0.8 if right else 2.2)
        text = str(predicted[index]) if right else f"{predicted[index]}  (is {labels[index]})"
        axes.set_title(text, fontsize=12 if right else 10.5, pad=3, color="#1f2328" if right else MISS)
    wrong = int((predicted != labels).sum())
    figure.text(0.03, 0.95, "image_vit_digits, INT8, on digits it has never seen", fontsize=18, weight="bold")
    figure.text(
        0.03,
        0.915,
        f"label above each digit as the INT8 graph reads it: {len(labels) - wrong} of {len(labels)} right; "
        f"{'the miss is' if wrong == 1 else f'all {wrong} misses are'} shown in red",
        fontsize=11.5,
        color="#59636e",
    )
    draw_table(figure.add_axes((0.03, 0.02, 0.94, 0.18)), results)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def choose_shown(missed: np.ndarray, count: int) -> list[int]:
    """Every miss (as many as fit), spread among right ones."""
    wrong = np.flatnonzero(missed)[:count]
    right = np.flatnonzero(~missed)[: count - len(wrong)]
    order = np.random.default_rng(0).permutation(count)
    chosen = np.concatenate([wrong, right])
    return [int(index) for index in chosen[order[order < len(chosen)]]]


def draw_table(axes, results: list[Result]) -> None:  # type: ignore[no-untyped-def]  # matplotlib has no types
    """The results under the picture."""
    axes.axis("off")
    table = axes.table(
        cellText=[
            (
                result.precision.upper(),
                format_share(result.top1),
                format_bytes(result.graph_bytes),
                f"{result.latency_ms:.2f} ms",
                format_bytes(result.engine_bytes),
                f"{result.build_seconds:.1f} s",
            )
            for result in results
        ],
        colLabels=("precision", "top-1", "ONNX graph", "one digit, this CPU", "TensorRT-RTX engine", "compiled in"),
        colWidths=(0.13, 0.13, 0.15, 0.21, 0.22, 0.16),
        cellLoc="center",
        bbox=(0, 0, 1, 1),
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(11.5)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#d0d7de")
        cell.set_text_props(weight="bold" if row == 0 else "normal", color="#1f2328")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
    except MetagenError as error:
        sys.exit(f"error: {error}")
