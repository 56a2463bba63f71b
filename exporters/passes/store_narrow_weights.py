"""StoreNarrowWeights: a float32 weight that was widened -> the bytes it is stored in, and a Cast. WidenWeights undone.

    W f32 (of W f16)            ->  W f16 --Cast--> f32, one Cast a weight
    Gather(W f32, ids)          ->  Gather(W f16, ids) --Cast--> f32: rows are looked up first

For graphs whose weights stay in float32: they share the portable graph's bytes instead of doubling them.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.derived import find_stored
from exporters.passes.shared.graph import Namer, add_initializer, is_onnx, list_graphs

_FLOAT = ir.DataType.FLOAT


class StoreNarrowWeights(ir.passes.InPlacePass):
    """Fires on every initializer that WidenWeights made and that is still used."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in list_graphs(model):
            wide = [
                value
                for value in graph.initializers.values()
                if find_stored(value.const_value) is not None and not value.is_graph_output()
            ]
            for value in wide:
                assert value.name is not None
                del graph.initializers[value.name]
            namer = Namer(model)
            for value in wide:
                stored = find_stored(value.const_value)
                assert stored is not None
                name = stored.name or (value.name or "").replace("/float", "", 1)
                _replace(graph, value, add_initializer(graph, stored, namer(name)), namer)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _replace(graph: ir.Graph, wide: ir.Value, narrow: ir.Value, namer: Namer) -> None:
    uses = list(wide.uses())
    lookups = [
        use
        for use in uses
        if use.idx == 0 and is_onnx(use.node, "Gather") and not use.node.outputs[0].is_graph_output()
    ]
    for use in lookups:
        out, owner = use.node.outputs[0], use.node.graph
        assert isinstance(owner, ir.Graph)
        use.node.replace_input_with(0, narrow)
        cast = _make_cast(out, namer, use.node)
        out.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, out)
        out.type = ir.TensorType(narrow.dtype) if narrow.dtype is not None else None
        owner.insert_after(use.node, cast)
    others = [use for use in uses if use not in lookups]
    if others:
        cast = _make_cast(narrow, namer, others[0].node)
        readers = {use.node for use in others}
        # in front of its first reader: a runtime that follows this order holds one widened weight at a time
        graph.insert_before(next((node for node in graph if node in readers), graph[0]), cast)
        for use in others:
            use.node.replace_input_with(use.idx, cast.outputs[0])


def _make_cast(value: ir.Value, namer: Namer, origin: ir.Node) -> ir.Node:
    cast = ir.node("Cast", [value], attributes={"to": _FLOAT.value}, metadata_props=dict(origin.metadata_props))
    cast.name = namer(f"{value.name}/to_float")
    cast.outputs[0].name = namer(f"{value.name}/float")
    cast.outputs[0].type = ir.TensorType(_FLOAT)
    cast.outputs[0].shape = value.shape.copy() if value.shape is not None else None
    return cast
