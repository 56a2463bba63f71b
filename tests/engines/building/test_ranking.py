"""A narrower precision that is not faster comes last, and the report says so; times are given, not measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.building.ranking import rank_engines
from specs.bundle import EngineFile, Graph, IoTensor, Manifest
from specs.errors import PreflightError

ENGINE = EngineFile(
    target="h200@trt8.6", precision="fp16", backend="tensorrt", backend_version="8.6.0", compute_capability="9.0",
    gpu="H200", file="", key="k", build_seconds=1.0,
)  # fmt: skip


def make(*precisions: str, backend: str = "tensorrt") -> Manifest:
    io = (IoTensor(name="x", dtype="float32", shape=(1,)),)
    engines = tuple(replace(ENGINE, precision=one, file=f"{one}.plan", backend=backend) for one in precisions)
    graph = Graph(name="g", component="g", file="g.onnx", golden="g.npz", inputs=io, outputs=io, engines=engines)
    return Manifest(name="m", spec_digest="d", created_by={}, dims={}, pipeline={"kind": "none"}, graphs=(graph,))


def rank(manifest: Manifest, built: str = "int8.plan", **times: float) -> tuple[list[str], dict[str, str]]:
    ranked, remarks = rank_engines(
        Path(), manifest, [built], measure=lambda folder, manifest, graph, engine: times[engine.precision]
    )
    return [engine.precision for engine in ranked.graphs[0].engines], remarks


def test_int8_that_is_slower_comes_last_and_is_said() -> None:
    order, remarks = rank(make("int8", "fp16"), int8=0.776, fp16=0.68)
    assert order == ["fp16", "int8"]
    assert remarks == {
        "int8.plan": "int8 takes 0.776 ms where fp16 takes 0.68 (golden inputs, copies included): "
        "a session takes fp16 unless it asks for int8"
    }


@pytest.mark.parametrize("order", [("fp16", "int8"), ("int8", "fp16")])
def test_int8_that_is_faster_stays_where_it_was(order: tuple[str, str]) -> None:
    assert rank(make(*order), int8=0.5, fp16=0.68) == (list(order), {})


def test_each_is_compared_with_the_fastest_wider_one() -> None:
    order, remarks = rank(make("int8", "fp16", "fp32"), int8=2.0, fp16=3.0, fp32=2.5)
    assert order == ["int8", "fp32", "fp16"] and list(remarks) == ["fp16.plan"]


def test_nothing_is_measured_without_a_rival_or_a_new_engine() -> None:
    assert rank(make("int8")) == (["int8"], {})
    assert rank(make("int8", "fp16"), built="other.plan") == (["int8", "fp16"], {})
    assert rank(make("int8", "fp16", backend="onnxruntime")) == (["int8", "fp16"], {})


def test_an_engine_that_does_not_open_changes_nothing_and_is_said() -> None:
    def refuse(*_: object) -> float:
        raise PreflightError("the GPU refused cuInit")

    manifest = make("int8", "fp16")
    ranked, remarks = rank_engines(Path(), manifest, ["int8.plan"], measure=refuse)
    assert ranked == manifest
    assert remarks == {"int8.plan": "precisions were not compared for speed: the GPU refused cuInit"}
