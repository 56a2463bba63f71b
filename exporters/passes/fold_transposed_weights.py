"""FoldTransposedWeights: Transpose(weight) -> a weight that is stored transposed.

torch keeps Linear weights as [out, in]; a streamed export leaves `MatMul(x, Transpose(weight))` in the graph. Done per
inference by a runtime that does not fold it, and hidden from the quantiser, which looks for a MatMul by a constant.
The new tensor is lazy: a 3 GB model is not transposed in memory all at once but tensor by tensor as it is written.

    W [N, K] --Transpose(1, 0)--> W' [K, N]
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes._graph import (
    Namer,
    add_initializer,
    is_onnx,
    list_graphs,
    read_constant,
    remove_dead,
)


class FoldTransposedWeights(ir.passes.InPlacePass):
    """Fires on a Transpose of an initializer that is no graph input; one tensor per (initializer, permutation)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer = Namer(model)
        made: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
        modified = False
        for graph in list_graphs(model):
            for node in list(graph):
                if not is_onnx(node, "Transpose") or node.outputs[0].is_graph_output():
                    continue
                source = node.inputs[0]
                tensor = read_constant(source)
                if source is None or tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                rank = len(tensor.shape)
                axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank)[::-1]
                key = (source, tuple(int(axis) for axis in axes))
                if key not in made:
                    owner = source.graph or graph
                    made[key] = add_initializer(
                        owner, transpose_lazily(tensor, key[1]), namer(f"{source.name}/transposed")
                    )
                node.outputs[0].replace_all_uses_with(made[key])
                remove_dead(graph, [node])
                _drop_unused(source)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def transpose_lazily(tensor: ir.TensorProtocol, axes: tuple[int, ...]) -> ir.LazyTensor:
    """The transposed tensor, computed each time it is read."""

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().transpose(axes)), dtype=tensor.dtype)

    shape = ir.Shape([tensor.shape.numpy()[axis] for axis in axes])
    return ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=shape)


def _drop_unused(value: ir.Value) -> None:
    graph = value.graph
    if graph is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        assert value.name is not None
        del graph.initializers[value.name]
