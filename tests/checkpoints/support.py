"""Checkpoints in, our modules and portable graphs out: what the tests of one-graph families share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from exporters.checkpoints import open_checkpoint
from exporters.lower import lower
from exporters.trace import choose_sizes, trace
from specs.graphs import count_parameters
from specs.handlers import GraphModule, get_handler
from specs.schema import Spec

Array = NDArray[Any]
Run = Callable[..., dict[str, Array]]


def save(model: nn.Module, folder: Path, **options: Any) -> Path:
    """As the library saves it."""
    model.save_pretrained(folder, **options)  # type: ignore[operator]
    return folder


def build(folder: Path) -> tuple[Spec, tuple[GraphModule, ...]]:
    """Our modules with the checkpoint's parameters, as many as the spec counts."""
    checkpoint = open_checkpoint(folder)
    graphs = get_handler(checkpoint.spec).build(checkpoint.spec, parameters=checkpoint.source)
    for graph in graphs:
        found = sum(parameter.numel() for parameter in set(graph.module.parameters()))
        assert found == count_parameters(checkpoint.spec)[graph.component], graph.component
    return checkpoint.spec, graphs


def run_torch(graph: GraphModule, **inputs: Array) -> dict[str, Array]:
    """One graph in torch, by name."""
    with torch.no_grad():
        out = graph.module(*(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs))
    parts = out if isinstance(out, tuple) else (out,)
    return {tensor.name: part.numpy() for tensor, part in zip(graph.outputs, parts, strict=True)}


def open_onnx(spec: Spec, graph: GraphModule, folder: Path) -> Run:
    """The portable graph of one module in ONNX Runtime, as a function of named arrays."""
    inputs = get_handler(spec).make_inputs(spec, graph, sizes=choose_sizes(spec.dims, near=3), seed=0)
    path = folder / f"{graph.name}.onnx"
    ir.save(lower(trace(graph, spec.dims, inputs), graph), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda **feed: dict(zip(names, session.run(None, feed), strict=True))


def edit_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Keys changed, or with None removed."""
    path = folder / name
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
