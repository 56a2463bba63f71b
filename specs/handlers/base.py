"""What every family's handler does, and the interface that exporters see.

A handler builds the torch modules of a spec's graphs, makes example inputs that look like real ones, and reads
calibration and evaluation data. Which graphs there are, and what goes in and out, is in `specs.graphs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from specs.graphs import GraphSpec, list_graphs
from specs.parameters.fill import fill_parameters
from specs.parameters.source import ParameterSource
from specs.samples.files import check_labels, load_arrays, take_batch
from specs.schema import Spec, TensorSpec

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class GraphModule(GraphSpec):
    """A graph with the module that it is exported from: eval mode, positional inputs in the order of `inputs`."""

    module: nn.Module


class Handler(ABC):
    """One family of models. `build` and the data methods are the same for all; what differs is abstract."""

    @abstractmethod
    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        """The module of each component, with parameters that are not filled yet."""

    @abstractmethod
    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        """What a host needs to drive the graphs, as JSON (`Manifest.pipeline`)."""

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        """A realistic value of one input: any ids, lengths as shares, and states as norms leave them."""
        if tensor.name.endswith("lengths"):
            return random.random(shape)  # a share of what is possible; `tie_inputs` knows how much that is
        if tensor.dtype == "int64":
            return random.integers(int(tensor.low), int(tensor.high), shape)
        return random.standard_normal(shape, dtype=np.float32)

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        """The module of one graph; the component's own, unless it has several graphs."""
        return component

    @final
    def build(
        self,
        spec: Spec,
        *,
        dtype: torch.dtype | None = None,
        scratch: Path | None = None,
        parameters: ParameterSource | None = None,
    ) -> tuple[GraphModule, ...]:
        """Every graph's module. Graphs of one component share its parameters.

        Modules are created without storage and filled in place, so that memory never holds a model twice; with a
        `scratch` folder their parameters lie in mapped files, and need not be in memory at all.

        Args:
            dtype: of every parameter; None keeps the type each is stored in. Modules with float16 or bfloat16
                parameters compute in float32 where a caller widens them (`exporters.stored_parameters`), else not.
            parameters: where the values come from; None: what the spec's `weights` names.

        Raises:
            WeightsError: the file is damaged, or does not hold exactly these tensors in these shapes.
        """
        with torch.device("meta"):
            components = self.make_components(spec)
        fill_parameters(components, parameters or spec.weights, dtype=dtype, scratch=scratch)
        return tuple(
            GraphModule(
                **{key: getattr(graph, key) for key in GraphSpec.__dataclass_fields__},
                module=self.make_graph_module(graph, components[graph.component]).eval(),
            )
            for graph in list_graphs(spec)
        )

    @final
    def make_inputs(self, spec: Spec, graph: GraphSpec, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        """Seeded example inputs of `graph`, with `sizes` for the dims it has."""
        random = np.random.default_rng([spec.weights.seed, seed])
        inputs: Arrays = {}
        for tensor in graph.inputs:
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
            inputs[tensor.name] = self.make_tensor(spec, graph, tensor, shape, random).astype(tensor.dtype)
        return self.tie_inputs(graph, inputs)

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Make inputs that were drawn one by one agree with each other."""
        return inputs

    @final
    def load_calibration(self, spec: Spec, graph: GraphModule) -> Iterator[Arrays]:
        """Batches of at most `dims.batch.opt` samples, `calibration.samples` in all: from the file, or seeded ones.

        Raises:
            CalibrationError: the file has other names, shapes or types than the graph, or nothing, or NaN.
        """
        batch, wanted = spec.dims["batch"], spec.calibration.samples
        if spec.calibration.source == "random":
            for seed in range(-(-wanted // batch.opt)):
                count = max(batch.min, min(batch.opt, wanted - seed * batch.opt))
                sizes = self.name_sizes(spec, graph, seed=seed) | {"batch": count}
                yield self.make_realistic_inputs(spec, graph, sizes=sizes, seed=seed + 1)
            return
        arrays = load_arrays(Path(spec.calibration.source), self.list_calibration_inputs(spec, graph), spec.dims)
        total = min(wanted, len(next(iter(arrays.values()))))
        for start in range(0, total, batch.opt):
            count = max(batch.min, min(batch.opt, total - start))
            yield self.finish_calibration(spec, graph, take_batch(arrays, start, count, total))

    def name_sizes(self, spec: Spec, graph: GraphSpec, *, seed: int) -> dict[str, int]:
        """The sizes that a random calibration sample of `graph` has."""
        return {name: dim.opt for name, dim in spec.dims.items()}

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        """Seeded inputs with the distribution that a deployed graph sees: for calibration and for the golden data."""
        return self.make_inputs(spec, graph, sizes=sizes, seed=seed)

    def list_calibration_inputs(self, spec: Spec, graph: GraphModule) -> tuple[TensorSpec, ...]:
        """What a calibration file holds for `graph`."""
        return graph.inputs

    def finish_calibration(self, spec: Spec, graph: GraphModule, arrays: Arrays) -> Arrays:
        """The inputs of `graph` from what a calibration file holds for it."""
        return arrays

    @final
    def load_evaluation(self, spec: Spec, graph: GraphSpec) -> tuple[Arrays, NDArray[np.int64]] | None:
        """Held-out inputs of `graph` and their labels, all of them in one batch; None when the spec has none.

        Raises:
            CalibrationError: as `load_calibration`, or labels that are not one class index a sample.
        """
        if spec.evaluation is None:
            return None
        path = Path(spec.evaluation.source)
        arrays = load_arrays(path, graph.inputs, {}, extra=("labels",))
        labels = check_labels(path, arrays.pop("labels"), count=len(next(iter(arrays.values()))), graph=graph)
        return arrays, labels
