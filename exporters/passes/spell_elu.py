"""SpellElu: Elu(alpha) -> Selu(alpha, gamma = 1), the same function, for TensorRT 11.

    elu(x) = x where x > 0, else alpha (e^x - 1);    selu(x) = gamma elu(x)

TensorRT-RTX 1.7 builds no engine of a graph in which an Elu follows a cut transposed convolution behind an LSTM, as in
every SEANet decoder ("There are 2 inputs. Expected 1": it counts alpha as an input); it takes the same graph with Selu.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.graph import is_onnx, list_graphs, notes_of


class SpellElu(ir.passes.InPlacePass):
    """Fires on every Elu, in any graph."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fired = 0
        for graph in list_graphs(model):
            for node in graph:
                if not is_onnx(node, "Elu"):
                    continue
                alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
                node.op_type = "Selu"
                node.attributes.clear()
                node.attributes.add(ir.AttrFloat32("alpha", alpha))
                node.attributes.add(ir.AttrFloat32("gamma", 1.0))
                fired += 1
        if fired:
            notes_of(model).log.append(f"SpellElu: {fired} nodes became Selu")
        return ir.passes.PassResult(model, modified=bool(fired))
