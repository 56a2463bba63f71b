"""Machines as preflight would find them, and typed graphs and engines for them in a small bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx

from engines.runtime.device.cuda import Gpu
from engines.runtime.preflight import Machine
from specs.bundle import EngineFile, TypedGraph
from specs.bundle.files import read_manifest
from tests.small_bundles import (
    change_manifest,
    make_classifier,
)

H200 = Gpu(name="NVIDIA H200", compute_capability="9.0")


def make_machine(gpu: Gpu | None = None, *, tensorrt: str | None = None, cuda: bool = False) -> Machine:
    """A machine as preflight would find it, with this machine's ONNX Runtime."""

    def find_version(module: str) -> str:
        if tensorrt is None:
            raise ImportError(f"No module named '{module}'")
        return tensorrt

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider") if cuda else ("CPUExecutionProvider",)
    return Machine(gpu=gpu, find_version=find_version, onnxruntime_providers=providers)


def add_typed(folder: Path, *precisions: str, target: str = "cpu") -> None:
    """Typed graphs that differ from the portable one by a bias, so that a test sees which one ran."""
    typed = list(read_manifest(folder).graphs[0].typed)
    for precision in precisions:
        file = f"part/model.{target}-{precision}.onnx"
        bias = 100.0 * (len(typed) + 1)
        onnx.save_model(make_classifier(bias=bias), folder / file)
        typed.append(TypedGraph(target=target, precision=precision, lowering="onnxruntime", opset=18, file=file))
    change_manifest(folder, graph={"typed": tuple(typed)})


def add_engine(folder: Path, **changes: object) -> EngineFile:
    engine = EngineFile(
        target="h200",
        precision="fp16",
        backend="tensorrt",
        backend_version="8.6.0",
        compute_capability="9.0",
        gpu="NVIDIA H200",
        file="part/model.h200-fp16.tensorrt.plan",
        key="0" * 64,
        build_seconds=1.0,
    )
    engine = dataclasses.replace(engine, **changes)  # type: ignore[arg-type]
    (folder / engine.file).write_bytes(b"not an engine")
    change_manifest(folder, graph={"engines": (engine,)})
    return engine
