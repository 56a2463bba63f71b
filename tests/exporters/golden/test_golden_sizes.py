"""Golden data has its usual sizes unless they cost too much; then the smallest, and everybody is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.golden import sizes as golden_sizes
from exporters.golden.run_cost import RunCost
from exporters.golden.sizes import MOST_BYTES, MOST_MACS, choose_golden_sizes, is_cheap
from metagen_deploy.cli import run_command
from specs.bundle.files import read_manifest
from specs.graphs import list_graphs
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.schema import Spec
from tests.zoo.whole_path import list_tiny_specs

SPEC = "video_generation:tiny"


def make_graph(name: str = "vae", spec: str = SPEC) -> tuple[Spec, GraphModule]:
    loaded = load_spec(spec)
    return loaded, next(graph for graph in get_handler(loaded).build(loaded) if graph.name == name)


def test_both_costs_count() -> None:
    assert is_cheap(RunCost(macs=MOST_MACS, peak_bytes=MOST_BYTES))
    assert not is_cheap(RunCost(macs=MOST_MACS + 1, peak_bytes=0))
    assert not is_cheap(RunCost(macs=0, peak_bytes=MOST_BYTES + 1))


@pytest.mark.parametrize("name", list_tiny_specs())
def test_of_a_cheap_graph_no_run_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a tenth of a second: the spec's own figures say that it is not needed."""
    monkeypatch.setattr(golden_sizes, "_estimate", None)
    spec = load_spec(name)
    handler = get_handler(spec)
    with torch.device("meta"):
        components = handler.make_components(spec)
    for graph in list_graphs(spec):
        module = GraphModule(**vars(graph), module=handler.make_graph_module(graph, components[graph.component]))
        assert not choose_golden_sizes(spec, handler, module).reduced


@pytest.mark.parametrize("limit", ["MOST_MACS", "MOST_BYTES"])
def test_a_dear_graph_gets_its_smallest_sizes(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, graph = make_graph()
    handler = get_handler(spec)
    cost = golden_sizes._estimate(spec, handler, graph, {"batch": 2})
    exact = {"MOST_MACS": cost.macs, "MOST_BYTES": cost.peak_bytes}[limit]
    monkeypatch.setattr(golden_sizes, limit, exact)
    usual = choose_golden_sizes(spec, handler, graph)
    assert (usual.sizes["batch"], usual.reduced) == (2, "")
    monkeypatch.setattr(golden_sizes, limit, exact - 1)
    smallest = choose_golden_sizes(spec, handler, graph)
    assert smallest.sizes["batch"] == 1
    assert smallest.reduced.startswith("at batch 1, the smallest that it takes: at batch 2 a run takes ")


@pytest.mark.parametrize("name", ["text_encoder", "denoiser", "vae"])
def test_the_quick_count_is_on_the_safe_side(name: str) -> None:
    spec, graph = make_graph(name)
    exact = golden_sizes._estimate(spec, get_handler(spec), graph, {"batch": 2})
    quick = golden_sizes._count(spec, graph, {"batch": 2})
    assert exact.macs < quick.macs < 16 * exact.macs
    assert exact.peak_bytes < quick.peak_bytes < 16 * exact.peak_bytes


def test_a_graph_that_cannot_shrink_keeps_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, graph = make_graph()
    monkeypatch.setattr(golden_sizes, "MOST_MACS", 0)
    fixed = spec.model_copy(update={"dims": {"batch": spec.dims["batch"].model_copy(update={"min": 2})}})
    assert not choose_golden_sizes(fixed, get_handler(fixed), graph).reduced
    still = replace(
        graph, inputs=tuple(tensor.model_copy(update={"shape": (2, *tensor.shape[1:])}) for tensor in graph.inputs)
    )
    assert not choose_golden_sizes(spec, get_handler(spec), still).reduced, "no dim of its inputs could be smaller"


def test_everybody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The exporter's message, the manifest and a later check; and the golden data is that small."""
    monkeypatch.setattr(golden_sizes, "MOST_MACS", 100_000_000)  # the decoder takes 233e6 at two rows
    bundle = tmp_path / "film.bundle"
    options = ["--target", "cpu", "--precision", "fp16"]
    assert run_command(["export", SPEC, "-o", str(bundle), *options]) == 0
    note = "note: vae was compared at batch 1, the smallest that it takes: at batch 2 a run takes 0.0e12"
    assert note in " ".join(capsys.readouterr().out.split())
    graphs = {graph.name: graph for graph in read_manifest(bundle).graphs}
    assert [name for name, graph in graphs.items() if graph.reduced_golden] == ["vae"]
    golden = {name: np.load(bundle / graph.golden) for name, graph in graphs.items()}
    rows = {name: len(golden[name][f"input:{graph.inputs[0].name}"]) for name, graph in graphs.items()}
    assert rows == {"text_encoder": 2, "denoiser": 2, "vae": 1}
    assert run_command(["check", str(bundle), "--backend", "onnxruntime"]) == 0
    assert note in " ".join(capsys.readouterr().out.split())
