"""The noise floor is the distance to float64, for every size, and who has none is told why."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporters import memory, stored_parameters
from exporters.golden import noise_floor
from exporters.golden.data import compute_outputs, run_module
from exporters.golden.noise_floor import (
    MOST_MACS,
    compute_exact_outputs,
    estimate_exact_cost,
    find_obstacle,
    measure_noise_floor,
    widen_cost,
)
from exporters.golden.run_cost import RunCost, _WatchStorages, estimate_cost
from exporters.golden.sizes import choose_golden_sizes
from exporters.memory import find_free_bytes
from exporters.stored_parameters import streaming_parameters
from exporters.trace import choose_sizes
from metagen_deploy import pipeline
from metagen_deploy.terminal.render import print_manifest, print_parity
from specs import ops
from specs.bundle.files import read_manifest
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.schema import TensorSpec, WeightsSpec

Arrays = dict[str, np.ndarray]


class Tied(nn.Module):
    """One weight looked up and multiplied with, a buffer, and a table that is sliced: every way into a weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(40, 16, dtype=dtype)
        self.out = nn.Linear(16, 40, bias=False, dtype=dtype)
        self.out.weight = self.embedding.weight
        self.norm, self.table = nn.LayerNorm(16, dtype=dtype), nn.Parameter(torch.randn(9, 16).to(dtype))
        self.register_buffer("scale", torch.rand(16) + 0.5)
        self.register_buffer("order", torch.arange(15, -1, -1))
        self.register_buffer("basis", torch.randn(16, 16))  # a product takes no two types

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = (x * 0).to(torch.int64) + torch.arange(x.shape[1])
        x = self.embedding(ids) + x[..., None] + self.table[: x.shape[1]]
        y: torch.Tensor = self.out(self.norm(x)[..., self.order] * self.scale @ self.basis) @ self.embedding.weight
        return y


class Deep(nn.Sequential):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def make_graph(module: nn.Module, width: int = 8) -> GraphModule:
    x, y = (TensorSpec(name=name, dtype="float32", shape=("batch", width)) for name in "xy")
    return GraphModule(name="g", component="g", file_stem="m", module=module.eval(), inputs=(x,), outputs=(y,))


def draw(width: int = 8) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal((2, width), dtype=np.float32)}


def copy_in_float64(graph: GraphModule, inputs: Arrays) -> Arrays:
    """The plain way, which holds the whole module in float64."""
    wide = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in inputs.items()}
    return run_module(replace(graph, module=copy.deepcopy(graph.module).double()), wide)


def list_family_graphs(name: str) -> Iterator[tuple[GraphModule, Arrays]]:
    spec = load_spec(name)
    if name.startswith("text_llm_8b"):
        spec = spec.model_copy(update={"weights": WeightsSpec(dtype="bf16")})
    handler = get_handler(spec)
    for graph in handler.build(spec):
        with streaming_parameters(graph.module):
            yield graph, handler.make_realistic_inputs(spec, graph, sizes=choose_sizes(spec.dims, near=2), seed=1)


@pytest.mark.parametrize(
    "name",
    [
        "text_llm_8b:tiny",  # stored in bfloat16
        "text_llm_tiny:tiny",
        "audio_musicgen_like:tiny",
        "audio_speech:tiny",
        "image_cnn_resnet50:tiny",
        "image_diffusion_small:tiny",
        "multimodal_sensor_fusion:tiny",  # bytes come in
        "video_realtime_avatar:tiny",
    ],
)
def test_streamed_float64_is_a_copy_s_float64(name: str) -> None:
    for graph, inputs in list_family_graphs(name):
        wanted, got = copy_in_float64(graph, inputs), compute_exact_outputs(graph, inputs)
        assert all(np.array_equal(wanted[key], got[key]) for key in wanted), graph.name
        outputs = compute_outputs(graph, inputs)
        floor = measure_noise_floor(graph, inputs, outputs)
        assert not floor.unknown and floor.values == {
            key: float(np.abs(outputs[key] - wanted[key]).max()) for key in outputs if outputs[key].dtype.kind == "f"
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tied_weights_and_buffers_are_widened(dtype: torch.dtype) -> None:
    graph = make_graph(Tied(dtype))
    outputs = compute_outputs(graph, draw())
    wanted = copy_in_float64(graph, draw())["y"]
    assert np.array_equal(compute_exact_outputs(graph, draw())["y"], wanted)
    floor = measure_noise_floor(graph, draw(), outputs)
    assert floor.values == {"y": float(np.abs(outputs["y"] - wanted).max())} and 0 < floor.values["y"] < 1e-3
    assert {p.dtype for p in graph.module.parameters()} == {dtype}, "a weight was widened where it is stored"
    assert graph.module.get_buffer("basis").dtype == torch.float32


def _stream_in_float32(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noise_floor, "_widen", dict)
    patch.setattr(noise_floor, "streaming_parameters", lambda module, dtype: streaming_parameters(module))


def _hide_float32(patch: pytest.MonkeyPatch) -> None:
    _stream_in_float32(patch)
    patch.setattr(
        noise_floor, "run_module", lambda *args: {k: v.astype(np.float64) for k, v in run_module(*args).items()}
    )


def _leave_buffers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nn.Module, "buffers", lambda self, recurse=True: iter(()))


def test_a_floor_in_float32_is_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make_graph(Tied(torch.float32))
    outputs, wanted = compute_outputs(graph, draw()), copy_in_float64(graph, draw())["y"]
    with monkeypatch.context() as patch:
        _stream_in_float32(patch)
        floor = measure_noise_floor(graph, draw(), outputs)
        assert (floor.values, floor.unknown) == ({}, "the module itself answers 'y' in float32")
    with monkeypatch.context() as patch:
        _hide_float32(patch)  # what no caller can see, the comparison with a copy does
        assert not np.array_equal(compute_exact_outputs(graph, draw())["y"], wanted)
    with monkeypatch.context() as patch:
        _leave_buffers(patch)
        floor = measure_noise_floor(graph, draw(), outputs)
        assert floor.unknown.startswith("the module does not run in float64: expected m1 and m2 to have the same dtype")


class Rounding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, torch.ones(8, 8))


class Overflowing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.isinf(x * 0 + 1e300), x, torch.nan)  # 1e300 is infinite in float32 alone


class Narrowing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 3).float()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Narrowing(), "the module itself answers 'y' in float32"),
        (Rounding(), "the module does not run in float64: "),
        (Overflowing(), "in float64 'y' holds NaN or infinity"),
    ],
)
def test_a_module_without_a_floor_says_why(module: nn.Module, reason: str) -> None:
    graph = make_graph(module)
    floor = measure_noise_floor(graph, draw(), compute_outputs(graph, draw()))
    assert not floor.values and floor.unknown.startswith(reason)


class Several(nn.Module):
    """A number, whole numbers, and nothing at all."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x / 3, x.argmax(1), x[:, :0]


def test_only_numbers_with_a_fraction_have_a_floor() -> None:
    graph = make_graph(Several())
    named = [("y", "float32"), ("ids", "int64"), ("none", "float32")]
    outputs = tuple(TensorSpec(name=name, dtype=dtype, shape=("batch", 8)) for name, dtype in named)  # type: ignore[arg-type]
    graph = replace(graph, outputs=outputs)
    floor = measure_noise_floor(graph, draw(), compute_outputs(graph, draw()))
    assert floor.unknown == "" and list(floor.values) == ["y"]
    x = draw()["x"]
    exact = x.astype(np.float64) / 3
    assert floor.values["y"] == np.abs((x / np.float32(3)).astype(np.float64) - exact).max() > 0


def measure_real_bytes(run: Callable[[GraphModule, Arrays], Arrays], graph: GraphModule, inputs: Arrays) -> int:
    with _WatchStorages() as watch:
        run(graph, inputs)
    return int(watch.peak_bytes)


def test_memory_holds_one_float64_weight_at_a_time() -> None:
    """Twelve layers of 2 MB in float64."""
    graph, inputs = make_graph(Deep(12, 512), 512), draw(512)
    weight_bytes = 8 * 512 * 512
    assert measure_real_bytes(copy_in_float64, graph, inputs) > 12 * weight_bytes
    streamed = measure_real_bytes(compute_exact_outputs, graph, inputs)
    assert weight_bytes <= streamed < 1.1 * weight_bytes
    assert estimate_exact_cost(graph, inputs).peak_bytes == streamed, "what is foretold is what is taken"


def test_a_large_linear_is_widened_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = make_graph(Deep(2, 512), 512), draw(512)
    wanted = compute_exact_outputs(graph, inputs)["y"]
    monkeypatch.setattr(stored_parameters, "_WIDENED_AT_ONCE_BYTES", 8 * 512 * 100)
    np.testing.assert_allclose(compute_exact_outputs(graph, inputs)["y"], wanted, rtol=1e-12)
    assert measure_real_bytes(compute_exact_outputs, graph, inputs) < 8 * 512 * 150


def test_the_cost_is_counted_without_running() -> None:
    module = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Unflatten(1, (1, 8, 8)))
    module.append(nn.Conv2d(1, 4, 3, padding=1))
    x = torch.full((10, 64), torch.nan)
    cost = estimate_cost(module.eval(), x)
    assert cost.macs == 10 * (2 * 64 * 256 + 4 * 64 * 9)
    assert cost.peak_bytes == 2 * 10 * 256 * 4, "what GELU takes and gives; the weights count nowhere"
    wide = estimate_exact_cost(make_graph(nn.Linear(64, 256, bias=False), 64), draw(64))
    assert (wide.macs, wide.peak_bytes) == (2 * 64 * 256, 8 * (64 * 256 + 2 * 256)), "the widened weight counts"


@pytest.mark.parametrize(
    "name", ["text_llm_8b:tiny", "image_vit_base:tiny", "audio_speech:tiny", "video_realtime_avatar:tiny"]
)
def test_float64_stays_below_what_the_spec_foretells(name: str) -> None:
    spec = load_spec(name)
    handler = get_handler(spec)
    for graph, inputs in list_family_graphs(name):
        at_most = choose_golden_sizes(spec, handler, graph).at_most
        exact, foretold = estimate_exact_cost(graph, inputs), widen_cost(graph, at_most)
        assert exact.macs < foretold.macs and exact.peak_bytes < foretold.peak_bytes, graph.name


def test_of_a_cheap_graph_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes as long as tracing; what is near a limit, or known by nobody, is counted."""
    graph = make_graph(Tied(torch.float32))
    outputs = compute_outputs(graph, draw())
    little = RunCost(macs=10_000, peak_bytes=10_000)
    wanted = measure_noise_floor(graph, draw(), outputs)
    weight_bytes = 8 * sum(parameter.numel() for parameter in graph.module.parameters())
    assert widen_cost(graph, little) == RunCost(macs=10_000, peak_bytes=20_000 + weight_bytes)
    monkeypatch.setattr(noise_floor, "estimate_exact_cost", lambda *_: pytest.fail("it was counted"))
    assert measure_noise_floor(graph, draw(), outputs, free_bytes=1 << 30, at_most=little) == wanted
    for at_most, free_bytes in (
        (RunCost(macs=MOST_MACS + 1, peak_bytes=1), 1 << 30),
        (RunCost(macs=1, peak_bytes=1 << 29), 1 << 30),
        (RunCost(macs=0, peak_bytes=1), 1 << 30),
        (little, (1 << 28) + weight_bytes),
        (None, 1 << 30),
    ):
        with pytest.raises(pytest.fail.Exception, match="it was counted"):
            measure_noise_floor(graph, draw(), outputs, free_bytes=free_bytes, at_most=at_most)


def test_the_cost_sees_into_custom_ops() -> None:
    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = x.view(1, 2, 8, 16)
            return ops.attention(heads, heads, heads, scale=0.25)

    cost = estimate_exact_cost(make_graph(Attend(), 128), draw(128))
    assert cost.macs == 2 * 2 * 8 * 8 * 16


def test_bodies_answer_as_their_custom_ops() -> None:
    for graph, inputs in list_family_graphs("image_hybrid_mobilevit:tiny"):
        wanted = compute_outputs(graph, inputs)
        with ops.open_bodies():
            got = compute_outputs(graph, inputs)
        assert all(np.array_equal(wanted[key], got[key]) for key in wanted)


def test_what_costs_too_much_is_not_run_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_obstacle(RunCost(macs=MOST_MACS, peak_bytes=1 << 30), 2 << 30) == ""
    assert find_obstacle(RunCost(macs=MOST_MACS + 1, peak_bytes=0), None) == (
        "in float64 this graph takes 5.0e12 multiply-accumulates, at most 5e12 are spent on it"
    )
    assert find_obstacle(RunCost(macs=0, peak_bytes=2_000_000_000), 2_000_000_000) == (
        "in float64 this graph takes 2.3 GB, 2.0 GB are free"
    )
    monkeypatch.setattr(noise_floor, "compute_exact_outputs", lambda *_: pytest.fail("it was run"))
    graph = make_graph(Tied(torch.float32))
    floor = measure_noise_floor(graph, draw(), compute_outputs(graph, draw()), free_bytes=1000)
    assert not floor.values and floor.unknown == "in float64 this graph takes 0.3 GB, 0.0 GB are free"


def test_the_bundle_and_both_reports_say_why_there_is_no_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []
    said: list[str] = []
    monkeypatch.setattr(noise_floor, "MOST_MACS", 1000)
    monkeypatch.setattr("exporters.export.find_free_bytes", asked.append)
    manifest, report = pipeline.export(
        "image_vit_base:tiny",
        output=tmp_path / "b",
        targets=("cpu",),
        precisions=("fp32",),
        max_host_ram_bytes=3_000_000_000,
        progress=lambda text, fraction: said.append(text),
    )
    assert asked == [3_000_000_000]
    why = "multiply-accumulates, at most 0e12 are spent on it"
    assert any(text.startswith("classifier: no noise floor: in float64") and text.endswith(why) for text in said)
    assert read_manifest(tmp_path / "b").graphs[0].no_noise_floor.endswith(why)
    assert report.no_noise_floor["classifier"].endswith(why)
    kept = json.loads((tmp_path / "b/reports/parity.json").read_text())
    assert kept["no_noise_floor"] == dict(report.no_noise_floor)
    assert {row.limit_relative for row in report.rows} == {5e-5}
    print_manifest(tmp_path / "b", manifest, {t.file: _nothing() for g in manifest.graphs for t in g.typed})
    print_parity(report)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("note: classifier has no noise floor, so fixed limits hold: in float64 this graph takes") == 2


def _nothing() -> Any:
    from specs.report import PrecisionShares

    return PrecisionShares(nodes={}, weight_bytes={}, compute={})


def test_free_memory_is_the_least_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = find_free_bytes()
    assert free is None or free > 1 << 20
    used = memory._read_kilobytes(Path("/proc/self/status"), "RssAnon:")
    if used is not None:
        limited = find_free_bytes(1 << 30)
        assert limited is not None and limited <= (1 << 30)
    monkeypatch.setattr(memory, "_read_kilobytes", lambda path, key: None)
    monkeypatch.setattr(memory, "_read_container_bytes", lambda folder: None)
    assert find_free_bytes() is None and find_free_bytes(5) == 5


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    assert memory._read_container_bytes(tmp_path) is None
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 9000\nanon_thp 5\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._read_container_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory._read_container_bytes(tmp_path) == 4000
