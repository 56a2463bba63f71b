"""MarkHalves: each plugin's node of a decode step says in what type it computes.

    half = 1    its first output is float16            half = 0    float32

TensorRT 8.6 chooses the types of a plugin itself, among those that it offers; with this the plugin offers one.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.keep_plugins import is_plugin
from exporters.passes.shared.graph import list_graphs
from exporters.passes.step.nodes import ATTENTION, LINEAR


class MarkHalves(ir.passes.InPlacePass):
    """Fires on the nodes that `FuseStep` made; after types are final."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for graph in list_graphs(model) for node in graph]
        fused = [node for node in nodes if is_plugin(node) and node.op_type in (LINEAR, ATTENTION)]
        for node in fused:
            half = node.outputs[0].dtype == ir.DataType.FLOAT16
            node.attributes["half"] = ir.AttrInt64("half", int(half))
        return ir.passes.PassResult(model, modified=bool(fused))
