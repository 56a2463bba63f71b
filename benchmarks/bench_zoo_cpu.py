"""Shipped specs on this CPU: our float32 graphs against stock torch.onnx + ONNX Runtime and torch eager, in turn.

    python benchmarks/bench_zoo_cpu.py [NAME[/GRAPH] ...] [--every-graph] [--processor-time] [--plot docs/zoo_cpu.png]

Without names: every tiny spec, and a few of middle size. Of each spec the last graph of the largest component, which
of a decoder is one step; `--every-graph` times them all. Stock is torch.onnx.export with its defaults, run by ONNX
Runtime with its defaults. A row is printed as soon as it is there: milliseconds at the smallest batch and the tuned
other sizes (median), both over stock, and operators: of stock's file, of our portable graph, of that with the bodies
of custom ops in their place, and of the graph that runs.

`--processor-time` counts what one thread spends instead of the clock, in turns of 10 ms, the fifth that was disturbed
least: the clock's ratios of graphs below a millisecond differ by a tenth or two from run to run, these by less.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from engines.onnx_files.inspect import inspect_model
from exporters.lower import export_stock, lower
from exporters.passes import run_pipeline
from exporters.trace import choose_sizes, trace
from metagen_deploy.bench import Runner, measure_in_turn
from specs import ops
from specs.document import parse_document, read_text
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.schema import Spec
from specs.sources import ZOO, list_zoo

MIDDLE = (
    "image_vit_base",
    "image_cnn_resnet50",
    "image_hybrid_mobilevit",
    "text_llm_tiny",
    "audio_whisper_tiny",
)
_TRACED_NEAR = 3
_TURN_SECONDS, _MEASURED_SECONDS, _FEWEST_TURNS = 0.01, 6.0, 5
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One graph: median milliseconds by contender, and operators by file."""

    name: str
    stock_ms: float
    torch_ms: float
    ours_ms: float
    nodes: tuple[int, int, int, int]  # stock, portable, portable with bodies inlined, typed

    @property
    def over_stock(self) -> float:
        return self.stock_ms / self.ours_ms

    @property
    def torch_over_stock(self) -> float:
        return self.stock_ms / self.torch_ms


def main() -> None:
    """Print the table, and draw it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--every-graph", action="store_true")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    print("| graph | stock | torch eager | ours fp32 | nodes: stock, portable, inlined, run |")
    print("|---|---|---|---|---|")
    rows = []
    for name in options.names or (*list_tiny(), *MIDDLE):
        for row in measure_spec(name, every_graph=options.every_graph, one_thread=options.processor_time):
            nodes = ", ".join(map(str, row.nodes))
            print(
                f"| {row.name} | {row.stock_ms:.2f} ms | {row.torch_ms:.2f} ms, {row.torch_over_stock:.2f}x"
                f" | {row.ours_ms:.2f} ms, **{row.over_stock:.2f}x** | {nodes} |",
                flush=True,
            )
            rows.append(row)
    if options.plot:
        draw(rows, options.plot)


def list_tiny() -> list[str]:
    """Every shipped spec with a tiny variant."""
    documents = {name: parse_document(read_text(ZOO / f"{name}.yaml"), source=name).data for name in list_zoo()}
    return [f"{name}:tiny" for name, data in documents.items() if "tiny" in data.get("variants", {})]


def measure_spec(name: str, *, every_graph: bool, one_thread: bool = False) -> Iterator[Row]:
    """Rows of a spec's graphs, or of `SPEC/GRAPH` alone; `one_thread` measures its processor time."""
    name, _, wanted = name.partition("/")
    spec = load_spec(name)
    weights = spec.weights.model_copy(update={"dtype": "fp32"})  # eager torch and the stock export want one type
    spec = spec.model_copy(update={"weights": weights})
    graphs = get_handler(spec).build(spec)
    if wanted:
        chosen = [graph for graph in graphs if graph.name == wanted]
    else:
        chosen = list(graphs) if every_graph else [_find_main(graphs)]
    for graph in chosen:
        with tempfile.TemporaryDirectory() as folder:
            yield _measure_graph(name, spec, graph, Path(folder), one_thread=one_thread)


def _find_main(graphs: Sequence[GraphModule]) -> GraphModule:
    """The last graph of the component with the most parameters."""
    sizes = {graph.component: sum(p.numel() for p in graph.module.parameters()) for graph in graphs}
    largest = max(sizes, key=lambda component: sizes[component])
    return [graph for graph in graphs if graph.component == largest][-1]


def _measure_graph(name: str, spec: Spec, graph: GraphModule, folder: Path, *, one_thread: bool) -> Row:
    handler = get_handler(spec)
    sizes = {dim: size.min if dim == "batch" else size.opt for dim, size in spec.dims.items()}
    feed = handler.make_inputs(spec, graph, sizes=sizes, seed=1)
    traced = handler.make_inputs(spec, graph, sizes=choose_sizes(spec.dims, near=_TRACED_NEAR), seed=0)
    portable, typed, stock = (folder / f"{stage}.onnx" for stage in ("portable", "typed", "stock"))
    model = lower(trace(graph, spec.dims, traced), graph)
    ir.save(model, portable)
    ir.save(run_pipeline(model, lowering="onnxruntime", precision="fp32").model, typed)
    del model
    export_stock(graph, spec.dims, traced, stock)
    contenders: dict[str, Runner] = {
        "stock": _open(stock, feed, one_thread=one_thread),
        "torch": functools.partial(_run_torch, graph, feed),
        "ours": _open(typed, feed, one_thread=one_thread),
    }
    measure, percentile = (measure_processor_ms, 20) if one_thread else (measure_in_turn, 50)
    typical = {name: float(np.percentile(times, percentile)) for name, times in measure(contenders).items()}
    counts = [inspect_model(path) for path in (stock, portable, typed)]
    return Row(
        name=f"{name} / {graph.name}",
        stock_ms=typical["stock"],
        torch_ms=typical["torch"],
        ours_ms=typical["ours"],
        nodes=(
            counts[0].inlined_nodes,
            sum(counts[1].operators.values()),
            counts[1].inlined_nodes,
            counts[2].inlined_nodes,
        ),
    )


def measure_processor_ms(contenders: Mapping[str, Runner]) -> dict[str, list[float]]:
    """Milliseconds of this process a run, of each contender in turn."""
    torch.set_num_threads(1)
    repeats = {}
    for name, run in contenders.items():
        run()
        started = time.process_time()
        run()
        repeats[name] = max(1, int(_TURN_SECONDS / max(time.process_time() - started, 1e-6)))
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    ending = time.perf_counter() + _MEASURED_SECONDS
    while time.perf_counter() < ending or len(spent["ours"]) < _FEWEST_TURNS:
        for name, run in contenders.items():
            started = time.process_time()
            for _ in range(repeats[name]):
                run()
            spent[name].append(1000 * (time.process_time() - started) / repeats[name])
    return spent


def _open(path: Path, feed: Feed, *, one_thread: bool) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if one_thread else 0
    options.log_severity_level = 4  # as the runtime has it: a warning a run takes longer than a small graph
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = {tensor.name for tensor in session.get_inputs()}  # an unused input may be gone from stock's file
    return functools.partial(session.run, None, {name: array for name, array in feed.items() if name in taken})


def _run_torch(graph: GraphModule, feed: Feed) -> object:
    with torch.inference_mode(), ops.plain_torch():
        return graph.module(*(torch.from_numpy(feed[tensor.name]) for tensor in graph.inputs))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of speed over stock, the slowest at the bottom; the line at 1 is stock."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: row.over_stock)
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(rows) + 1.2), layout="constrained")
    places = np.arange(len(rows))
    axes.barh(places + 0.2, [row.over_stock for row in rows], 0.38, color="#1f6feb", label="ours, fp32")
    axes.barh(places - 0.2, [row.torch_over_stock for row in rows], 0.38, color="#b0b8c4", label="torch eager")
    for place, row in zip(places, rows, strict=True):
        axes.text(row.over_stock * 1.02, place + 0.2, f"{row.over_stock:.2f}x", va="center", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 4, 8) if tick <= 1.2 * max(row.over_stock for row in rows)]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, [row.name for row in rows], fontsize=8)
    axes.set_xlabel("speed over torch.onnx.export and ONNX Runtime with their defaults (higher is faster)")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(left=min(0.1, *(0.8 * row.over_stock for row in rows)))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
