"""WidenWeights: Cast(weight) -> a float32 weight that remembers the type it is stored in.

    W f16 --Cast--> f32                  ->  W f32 (lazy)
    Gather(W f16, ids) --Cast--> f32     ->  Gather(W f32, ids)

After it a graph looks as if its weights had been float32 all along, which is what the precision passes expect. They
take the stored bytes again where they want that very type (ConvertToFloat16); StoreNarrowWeights brings the rest back.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.derived import NARROW, widen_lazily
from exporters.passes.shared.graph import Namer, add_initializer, is_onnx, list_graphs, read_constant, remove_dead

_FLOAT = ir.DataType.FLOAT


class WidenWeights(ir.passes.InPlacePass):
    """Fires on a Cast to float32 of a float16 or bfloat16 initializer, or of a Gather from one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer = Namer(model)
        made: dict[ir.Value, ir.Value] = {}
        modified = False
        for graph in list_graphs(model):
            for node in list(graph):
                if not is_onnx(node, "Cast") or node.attributes["to"].as_int() != _FLOAT.value:
                    continue
                if node.outputs[0].is_graph_output():
                    continue
                weight, gather = _find_weight(node)
                tensor = read_constant(weight)
                if weight is None or tensor is None:
                    continue
                if weight not in made:
                    owner, taken = weight.graph or graph, node.outputs[0].name == f"{weight.name}/float"
                    node.outputs[0].name = f"{weight.name}/widened" if taken else node.outputs[0].name
                    name = f"{weight.name}/float" if taken else namer(f"{weight.name}/float")
                    made[weight] = add_initializer(owner, widen_lazily(tensor), name)
                if gather is None:
                    node.outputs[0].replace_all_uses_with(made[weight])
                else:
                    gather.replace_input_with(0, made[weight])
                    gather.outputs[0].type = ir.TensorType(_FLOAT)
                    node.outputs[0].replace_all_uses_with(gather.outputs[0])
                remove_dead(graph, [node])
                if weight.is_initializer() and not weight.uses() and not weight.is_graph_output():
                    assert weight.name is not None and weight.graph is not None
                    del weight.graph.initializers[weight.name]
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _find_weight(cast: ir.Node) -> tuple[ir.Value | None, ir.Node | None]:
    """The narrow weight behind a Cast, and the Gather between them."""
    value = cast.inputs[0]
    if value is None:
        return None, None
    producer = value.producer()
    if producer is not None and is_onnx(producer, "Gather") and _has_one_use(value):
        weight = producer.inputs[0]
        tensor = read_constant(weight)
        return (weight, producer) if tensor is not None and tensor.dtype in NARROW else (None, None)
    tensor = read_constant(value)
    return (value, None) if tensor is not None and tensor.dtype in NARROW else (None, None)


def _has_one_use(value: ir.Value) -> bool:
    return len(list(value.uses())) == 1 and not value.is_graph_output()
