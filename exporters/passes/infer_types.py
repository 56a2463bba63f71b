"""InferTypes: give every value a type, so that later passes can decide by it.

onnx's shape inference first; whatever it leaves open (it stops at an operator it does not know, and gives up on a file
whose stored shapes contradict it) is filled in from the operator schemas: an output whose type variable is bound by an
input has that input's type. What is then still unknown stays unknown, and nothing is assumed about it.

Not here: shapes beyond what onnx infers.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from exporters.passes.shared.graph import (
    copy_without_weights,
    is_onnx,
    list_graphs,
    list_subgraphs,
    notes_of,
    read_constant,
)
from exporters.passes.shared.types import find_schema, list_ports, spell_type

#: Operators whose output type an attribute names: op -> (attribute, type when it is absent).
_TYPE_ATTRIBUTES: dict[str, tuple[str, ir.DataType | None]] = {
    "Cast": ("to", None),
    "EyeLike": ("dtype", None),
    "RandomNormal": ("dtype", ir.DataType.FLOAT),
    "RandomUniform": ("dtype", ir.DataType.FLOAT),
    "RandomNormalLike": ("dtype", None),
    "RandomUniformLike": ("dtype", None),
    "Bernoulli": ("dtype", None),
    "Multinomial": ("dtype", ir.DataType.INT32),
    "HannWindow": ("output_datatype", ir.DataType.FLOAT),
    "HammingWindow": ("output_datatype", ir.DataType.FLOAT),
    "BlackmanWindow": ("output_datatype", ir.DataType.FLOAT),
    "MelWeightMatrix": ("output_datatype", ir.DataType.FLOAT),
}
_SAME_AS_INPUT = ("EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli")


class InferTypes(ir.passes.InPlacePass):
    """Fills in types (and, where onnx can, shapes); changes no node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        inferred = _merge(model, _infer(model))
        filled = _fill_graph(model.graph, model.opset_imports)
        return ir.passes.PassResult(model, modified=inferred or filled)


def _infer(model: ir.Model) -> ir.Model | None:
    """onnx's own inference, on a copy without the large weights."""
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(copy_without_weights(model)), data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        notes_of(model).log.append(f"InferTypes: onnx's inference gave up: {str(error).strip().splitlines()[0]}")
        return None
    return ir.from_proto(proto)


def _merge(model: ir.Model, inferred: ir.Model | None) -> bool:
    """Take over types and shapes where `model` has none; what a file states is not overruled."""
    modified = False
    for graph, other in zip(list_graphs(model), list_graphs(inferred) if inferred is not None else (), strict=False):
        known = ir.convenience.create_value_mapping(other)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            if (source := known.get(name)) is None:
                continue
            if spell_type(value.type) is None and source.type is not None:
                value.type, modified = source.type, True
            if value.shape is None and source.shape is not None:
                value.shape, modified = source.shape.copy(), True
    return modified


def _fill_graph(graph: ir.Graph, opsets: dict[str, int]) -> bool:
    filled = False
    for value in graph.initializers.values():
        if value.type is None and value.const_value is not None:
            value.type, filled = ir.TensorType(value.const_value.dtype), True
    for node in graph:
        for body in list_subgraphs(node):
            filled |= _fill_graph(body, opsets)
        if any(spell_type(output.type) is None for output in node.outputs):
            filled |= _fill_node(node, find_schema(node, opsets))
    return filled


def _fill_node(node: ir.Node, schema: onnx.defs.OpSchema | None) -> bool:
    if schema is None:
        return False
    if is_onnx(node, "If"):
        branch = node.attributes["then_branch"].as_graph()
        known = [value.type for value in branch.outputs]
    elif is_onnx(node, "Constant"):
        tensor = read_constant(node.outputs[0])
        known = [ir.TensorType(tensor.dtype) if tensor is not None else None]
    elif is_onnx(node, "ConstantOfShape"):
        attribute = node.attributes.get("value")
        known = [ir.TensorType(ir.DataType.FLOAT if attribute is None else attribute.as_tensor().dtype)]
    elif is_onnx(node, *_TYPE_ATTRIBUTES):
        known = [_read_type_attribute(node)]
    else:
        known = _bind_outputs(node, schema)
    filled = False
    for output, kind in zip(node.outputs, known, strict=False):
        if spell_type(output.type) is None and kind is not None:
            output.type, filled = kind, True
    return filled


def _read_type_attribute(node: ir.Node) -> ir.TypeProtocol | None:
    name, default = _TYPE_ATTRIBUTES[node.op_type]
    if name in node.attributes:
        return ir.TensorType(ir.DataType(node.attributes[name].as_int()))
    if default is not None:
        return ir.TensorType(default)
    value = node.inputs[0] if node.op_type in _SAME_AS_INPUT and node.inputs else None
    return None if value is None or value.dtype is None else ir.TensorType(value.dtype)


def _bind_outputs(node: ir.Node, schema: onnx.defs.OpSchema) -> list[ir.TypeProtocol | None]:
    bound: dict[str, ir.TypeProtocol] = {}
    known: list[ir.TypeProtocol | None] = [None] * len(node.outputs)
    for port in list_ports(node, schema):
        if not port.is_output:
            if port.variable and port.value.type is not None:
                bound.setdefault(port.variable, port.value.type)
        elif port.variable in bound:
            known[port.index] = bound[port.variable]
        elif len(port.allowed) == 1:
            known[port.index] = _parse_tensor_type(next(iter(port.allowed)))
    return known


def _parse_tensor_type(text: str) -> ir.TypeProtocol | None:
    inner = text.removeprefix("tensor(").removesuffix(")")
    return ir.TensorType(ir.DataType[inner.upper()]) if inner.upper() in ir.DataType.__members__ else None
