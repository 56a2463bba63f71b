"""What a user would run without this project, rebuilt from a bundle's spec: the other side of every benchmark.

torch        the reference model in eager mode, in torch's own operators
stock-onnx   that model through torch.onnx.export and ONNX Runtime, all with their defaults
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from exporters.lower import export_stock
from specs import ops
from specs.document import read_text
from specs.handlers import GraphModule, get_handler
from specs.parsing.parse import parse_spec
from specs.schema import Spec, WeightsSpec

Feed = Mapping[str, NDArray[Any]]


class Baseline:
    """Makes a runner for any graph of one bundle's spec."""

    def __init__(self, kind: str, spec_file: Path) -> None:
        assert kind in ("torch", "stock-onnx"), kind
        self.kind = kind
        spec = parse_spec(read_text(spec_file), source=str(spec_file))
        # Weights of the user's own are not in the bundle, and their values take no part in how long a run lasts.
        self.spec: Spec = spec.model_copy(update={"weights": WeightsSpec()})
        self._modules: dict[str, GraphModule] = {m.name: m for m in get_handler(self.spec).build(self.spec)}

    def make_runner(self, graph: str, feed: Feed) -> Callable[[], object]:
        """A call that runs `graph` once on `feed`."""
        module = self._modules[graph]
        return _run_torch(module, feed) if self.kind == "torch" else self._run_stock(module, feed)

    def _run_stock(self, module: GraphModule, feed: Feed) -> Callable[[], object]:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "stock.onnx"
            export_stock(module, self.spec.dims, feed, path)
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda: session.run(None, dict(feed))


def _run_torch(module: GraphModule, feed: Feed) -> Callable[[], object]:
    arguments = tuple(torch.from_numpy(np.array(feed[tensor.name])) for tensor in module.inputs)

    def run() -> object:
        with torch.inference_mode(), ops.plain_torch():
            return module.module(*arguments)

    return run
