"""FoldTransposedWeights: Transpose(weight) -> a weight that is stored transposed.

torch keeps Linear weights as [out, in]; an export leaves `MatMul(x, Transpose(weight))` in the graph. Done per
inference by a runtime that does not fold it, and hidden from the quantiser, which looks for a MatMul by a constant.
The new tensor is lazy: a 3 GB model is not transposed in memory all at once but tensor by tensor as it is written.

    W [N, K] --Transpose(1, 0)--> W' [K, N]

Quantisers make a tensor of their own anyway, and need every weight as [K, N]: they come after a fold of tied ones too.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.derived import transpose_lazily
from exporters.passes.shared.graph import (
    Namer,
    add_initializer,
    is_onnx,
    list_graphs,
    notes_of,
    read_constant,
    remove_dead,
)

#: A copy of what is smaller costs nothing worth a Transpose per inference.
_SMALL_BYTES = 1 << 20


class FoldTransposedWeights(ir.passes.InPlacePass):
    """Fires on a Transpose of an initializer that is no graph input; one tensor per (initializer, permutation).

    Args:
        keep_tied: leave a weight that is also read as it is (a tied embedding): it would be stored twice.
    """

    def __init__(self, *, keep_tied: bool = False) -> None:
        self.keep_tied = keep_tied

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, log = Namer(model), notes_of(model).log
        made: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
        kept: dict[ir.Value, str] = {}
        modified = False
        for graph in list_graphs(model):
            for node in list(graph):
                if not is_onnx(node, "Transpose") or node.outputs[0].is_graph_output():
                    continue
                source = node.inputs[0]
                tensor = read_constant(source)
                if source is None or tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                if source not in kept:
                    kept[source] = _check(source, tensor) if self.keep_tied else ""
                    if kept[source]:
                        log.append(f"FoldTransposedWeights: '{source.name}' stays: {kept[source]}")
                if kept[source]:
                    continue
                key = (source, _read_axes(node, len(tensor.shape)))
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


def _check(source: ir.Value, tensor: ir.TensorProtocol) -> str:
    """Why this weight must not be stored transposed, or ""."""
    if tensor.nbytes < _SMALL_BYTES:
        return ""
    other = next((use.node for use in source.uses() if not is_onnx(use.node, "Transpose")), None)
    return f"{other.op_type} '{other.name}' reads it as it is" if other is not None else ""


def _read_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank)[::-1]
    return tuple(int(axis) for axis in axes)


def _drop_unused(value: ir.Value) -> None:
    graph = value.graph
    if graph is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        assert value.name is not None
        del graph.initializers[value.name]
