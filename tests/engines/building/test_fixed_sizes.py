"""Engines of one size: which are built, how they are compared, and that a request of exactly that size takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.backends import load_backend
from engines.backends.base import Availability
from engines.backends.trt.static_graph import find_static, write_static
from engines.building.bundle import build_bundle
from engines.building.jobs import choose_jobs
from engines.building.profiles import make_profiles
from engines.building.ranking import rank_engines
from engines.checking import parity, stages
from engines.checking.reference import read_golden, resize_feed
from engines.runtime import load, session
from engines.runtime.preflight import Candidate
from specs.bundle import EngineFile, Graph
from specs.bundle.files import read_manifest, verify_files
from specs.errors import BuildError, PreflightError
from tests.engines.runtime.machines import H200, add_engine, make_machine
from tests.passes_support import random
from tests.small_bundles import SIDE, change_manifest, write_classifier

TYPED = "block/model.rtx-4090-fp16"


def test_a_fixed_size_is_an_engine_more(bundle: Path) -> None:
    report = build_bundle(bundle, fixed=[{"batch": 1}, {"batch": 1, "tokens": 7}])
    assert [row.file for row in report.rows] == [
        "block/model.cpu-fp32.onnx",
        f"{TYPED}.tensorrt-rtx.plan",
        f"{TYPED}.batch1.tensorrt-rtx.plan",  # once, and not of ONNX Runtime, which makes no engines
    ]
    assert "for batch 1 alone" in report.rows[2].notes and "for batch 1 alone" not in report.rows[1].notes
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    general, fixed = manifest.graphs[0].engines
    assert (general.sizes, fixed.sizes) == ({}, {"batch": 1}) and general.key != fixed.key
    assert [row.reused for row in build_bundle(bundle, fixed=[{"batch": 1}]).rows] == [False, True, True]
    assert build_bundle(bundle).rows[1].reused  # what was not asked for again stays
    assert read_manifest(bundle).graphs[0].engines == (general, fixed)


@pytest.mark.parametrize(
    ("sizes", "problem", "allowed"),
    [
        ({"tokens": 4}, "no graph of this bundle has its dims fixed by these sizes", "block: batch"),
        ({"batch": 99}, "the size of dim 'batch' is outside the bundle's range", "1 to "),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_built(
    bundle: Path, sizes: dict[str, int], problem: str, allowed: str
) -> None:
    with pytest.raises(BuildError, match=problem) as caught:
        build_bundle(bundle, fixed=[sizes])
    assert (caught.value.allowed or "").startswith(allowed)
    assert not read_manifest(bundle).graphs[0].engines


def test_every_dim_of_a_graph_must_be_named(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    graph = manifest.graphs[0]
    inputs = (replace(graph.inputs[0], shape=("batch", "a/b", 4)),)
    other = replace(manifest, dims={"batch": (1, 1, 8), "a/b": (1, 2, 8)}, graphs=(replace(graph, inputs=inputs),))
    jobs, _ = choose_jobs(other, "rtx-4090", None, [{"batch": 2, "a/b": 3, "more": 1}])
    assert [job.sizes for job in jobs] == [{}, {"batch": 2, "a/b": 3}]
    assert jobs[1].file == f"{TYPED}.batch2.a_b3.tensorrt-rtx.plan"
    assert jobs[1].narrow(other.dims) == {"batch": (2, 2, 2), "a/b": (3, 3, 3)}
    with pytest.raises(BuildError, match="no graph"):
        choose_jobs(other, "rtx-4090", None, [{"batch": 2}])


def test_a_static_graph_is_the_same_graph(bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime runs it, and refuses another batch; the file says what onnx's own package would say."""
    path = bundle / "block/model.cpu-fp32.onnx"
    value = random(3, *(int(size) for size in read_manifest(bundle).graphs[0].inputs[0].shape[1:]))
    (profile,) = make_profiles(read_manifest(bundle).graphs[0].inputs, {"batch": (3, 3, 3)}, where="")
    shapes = find_static((profile,), ())
    with write_static(path, shapes, path.with_name("static.onnx")) as static:
        wanted = onnx.load(path, load_external_data=False)
        for dim, size in zip(wanted.graph.input[0].type.tensor_type.shape.dim, value.shape, strict=True):
            dim.dim_value = size
        assert onnx.load(static, load_external_data=False) == wanted
        one, other = (onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (static, path))
        assert all(
            np.array_equal(*pair)
            for pair in zip(one.run(None, {"tokens": value}), other.run(None, {"tokens": value}), strict=True)
        )
        with pytest.raises(Exception, match="Got: 2 Expected: 3"):
            one.run(None, {"tokens": value[:2]})
    assert not static.exists() and path.exists()


def test_ranges_and_static_graphs_are_compiled_as_they_are(bundle: Path) -> None:
    (profile,) = make_profiles(read_manifest(bundle).graphs[0].inputs, {"batch": (1, 3, 3)}, where="")
    one = replace(profile, minimum=profile.maximum)
    assert not find_static((profile,), ()) and not find_static((), ()) and not find_static((one,), (one,))
    with write_static(bundle / "m.onnx", {}, bundle / "never") as model:
        assert model == bundle / "m.onnx" and not (bundle / "never").exists()


class StandIn:
    """In place of TensorRTEngine: answers with the batch that it was built for, 0 for all."""

    opened: list[str] = []  # noqa: RUF012
    refused = ""

    def __init__(
        self,
        path: Path,
        graph: Graph,
        candidate: Candidate,
        *,
        plugins: Sequence[Path],
        stream: int | None,
        beside: StandIn | None,
    ) -> None:
        if candidate.file == self.refused:
            raise PreflightError("refused")
        assert (beside is None) == (not self.opened), "the engine of all sizes comes first, and shares its stream"
        self.opened.append(candidate.file)
        self.view = self.allocate = None
        self.batch, self.file = candidate.sizes.get("batch", 0), candidate.file

    def execute(
        self, names: Sequence[str], feed: dict[str, np.ndarray], keep: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        return [np.full((len(feed["image"]), 3), self.batch, np.float32) for _ in names]

    def close(self) -> None:
        self.opened.remove(self.file)


@pytest.fixture
def sized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, tuple[EngineFile, ...]]:
    """A bundle with engines of all batches, of 1 and of 4, and one of 2 in another precision."""
    folder = write_classifier(tmp_path / "tiny.bundle")
    engine = add_engine(folder)
    named = [("one", {"batch": 1}, "fp16"), ("four", {"batch": 4}, "fp16"), ("two", {"batch": 2}, "int8")]
    engines = [replace(engine, file=f"part/{n}.tensorrt.plan", sizes=s, precision=p) for n, s, p in named]
    for one in engines:
        (folder / one.file).write_bytes(b"not an engine")
    change_manifest(folder, graph={"engines": (engines[0], engine, *engines[1:])})
    monkeypatch.setattr(session, "TensorRTEngine", StandIn)
    monkeypatch.setattr(StandIn, "opened", [])
    return folder, (engine, *engines)


def ask(opened: session.Session, batch: int) -> float:
    return float(opened.run({"image": np.zeros((batch, 1, SIDE, SIDE), np.float32)})["logits"][0, 0])


def test_a_request_of_exactly_the_size_takes_the_fixed_engine(sized: tuple[Path, tuple[EngineFile, ...]]) -> None:
    folder, (engine, one, four, _) = sized
    with load(folder, machine=make_machine(H200, tensorrt="8.6.0")) as opened:
        assert [ask(opened, batch) for batch in (1, 2, 3, 4, 1)] == [1, 0, 0, 4, 1]
        (choice,) = opened.backend_notes
        assert choice.file == engine.file and StandIn.opened == [engine.file, one.file, four.file]
        assert f"  batch 1: {one.file}\n  batch 4: {four.file}" in opened.describe()
    assert StandIn.opened == []


def test_a_fixed_engine_that_does_not_open_is_said_and_the_other_runs(
    sized: tuple[Path, tuple[EngineFile, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (_, one, *_) = sized
    monkeypatch.setattr(StandIn, "refused", one.file)
    with load(folder, machine=make_machine(H200, tensorrt="8.6.0")) as opened:
        assert [ask(opened, batch) for batch in (1, 4)] == [0, 4]
        assert f"not {one.file} on tensorrt: refused" in opened.describe()


def test_fixed_engines_are_not_ranked(sized: tuple[Path, tuple[EngineFile, ...]]) -> None:
    """The golden inputs do not fit them; they stay behind the others."""
    folder, (engine, one, four, two) = sized
    manifest = read_manifest(folder)
    ranked, _ = rank_engines(folder, manifest, [engine.file], measure=lambda *_: pytest.fail("there is no rival"))
    assert ranked.graphs[0].engines == (engine, one, four, two)


def test_a_feed_in_other_sizes_holds_the_values_it_had(bundle: Path) -> None:
    graph = read_manifest(bundle).graphs[0]
    feed, _ = read_golden(bundle, graph)
    (value,) = feed.values()
    (more,) = resize_feed(feed, graph, {"batch": 2 * len(value) + 1}).values()
    assert np.array_equal(more, np.concatenate([value, value, value[:1]]))
    (less,) = resize_feed(feed, graph, {"batch": 1}).values()
    assert np.array_equal(less, value[:1])


@pytest.mark.parametrize("wrong", [False, True])
def test_a_fixed_engine_is_compared_with_the_one_of_all_sizes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """ONNX Runtime stands in for the GPU; the mutant's values are those of another batch."""
    build_bundle(bundle, target="rtx-4090", fixed=[{"batch": 3}])
    asked: list[tuple[int, ...]] = []
    real = load_backend("onnxruntime")

    def open_typed(path: Path, plugins: Sequence[Path] = ()) -> Any:
        runner = real.load(path.parent / f"{TYPED.split('/')[1]}.onnx")
        infer = runner.infer_impl

        def infer_impl(feed_dict: dict[str, np.ndarray], *args: Any, **options: Any) -> Any:
            asked.append(feed_dict["tokens"].shape)
            shifted = {"tokens": np.roll(feed_dict["tokens"], 1, axis=0)}
            return infer(shifted if wrong and "batch3" in path.name else feed_dict, *args, **options)

        runner.infer_impl = infer_impl
        return runner

    here = Availability(backend="tensorrt-rtx", version="1", can_compile=True, can_run=True, device="GPU (SM 8.9)")
    stand_in = SimpleNamespace(load=open_typed, probe=lambda: here)
    monkeypatch.setattr(stages, "load_backend", lambda name: stand_in if name == "tensorrt-rtx" else real)
    report = parity.check_bundle(bundle, backends=("tensorrt-rtx",))
    by_stage = {row.stage: row.passed for row in report.rows}
    assert by_stage == {f"{TYPED}.tensorrt-rtx.plan": True, f"{TYPED}.batch3.tensorrt-rtx.plan": not wrong}
    assert [shape[0] for shape in asked].count(3) == 2  # the fixed engine, and the one it is compared with
