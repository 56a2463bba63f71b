"""SliceShapes: Shape with `start` and `end` becomes the whole Shape and a Slice of it.

The two attributes came with opset 15. TensorRT 8.6's parser reads opset 17, ignores them without a word and goes on
with the whole shape (seen on 8.6.0: a Concat of one size too many, or a crash of the parser in a Range).

    x --Shape(start, end)--> sizes      =>      x --Shape--> all --Slice(start, end)--> sizes
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.graph import Builder, Namer, is_onnx, list_graphs, take_over

_TO_THE_END = np.iinfo(np.int64).max


class SliceShapes(ir.passes.InPlacePass):
    """Fires on every Shape with either attribute, in any graph."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, modified = Namer(model), False
        for graph in list_graphs(model):
            for node in list(graph):
                if not is_onnx(node, "Shape") or not {"start", "end"} & set(node.attributes):
                    continue
                build = Builder(graph, node, namer)
                start = node.attributes["start"].as_int() if "start" in node.attributes else 0
                end = node.attributes["end"].as_int() if "end" in node.attributes else _TO_THE_END
                bounds = [build.constant(np.array([bound], np.int64)) for bound in (start, end, 0)]
                whole = build("Shape", node.inputs[0], dtype=ir.DataType.INT64)
                sizes = build("Slice", whole, *bounds, dtype=ir.DataType.INT64, shape=node.outputs[0].shape)
                build.insert_before(node)
                take_over(graph, [node], node, sizes)
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph.all_nodes():
            if is_onnx(node, "Shape") and {"start", "end"} & set(node.attributes):
                raise ir.passes.PostconditionError(f"'{node.name}' still has a start or an end")
