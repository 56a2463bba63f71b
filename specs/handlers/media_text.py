"""What handlers of a decoder that reads more than text have in common: its two graphs, and what they are tried with."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping

from torch import nn

from specs.graphs import GraphSpec
from specs.handlers.base import Arrays, GraphModule, Handler
from specs.handlers.text import TextHandler
from specs.models.causal import CausalModel, Decode
from specs.models.image_text import PrefillWithImages
from specs.schema import Spec, TensorSpec

#: A decode step is the same whatever the prompt was.
TEXT = TextHandler()


class MediaTextHandler(Handler, ABC):
    """A decoder whose prefill also takes embeddings of pictures or sounds; other components have one graph."""

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        if not isinstance(component, CausalModel):
            return component
        return PrefillWithImages(component) if graph.file_stem == "prefill" else Decode(component)

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        return TEXT.tie_inputs(graph, inputs) if graph.file_stem in ("prefill", "decode") else inputs

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        if graph.file_stem == "decode":
            return TEXT.make_realistic_inputs(spec, graph, sizes=sizes, seed=seed)
        return self.make_inputs(spec, graph, sizes=sizes, seed=seed)

    def list_calibration_inputs(self, spec: Spec, graph: GraphModule) -> tuple[TensorSpec, ...]:
        return TEXT.list_calibration_inputs(spec, graph) if graph.file_stem == "decode" else graph.inputs

    def finish_calibration(self, spec: Spec, graph: GraphModule, arrays: Arrays) -> Arrays:
        return TEXT.finish_calibration(spec, graph, arrays) if graph.file_stem == "decode" else arrays
