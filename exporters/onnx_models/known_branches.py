"""Branches that only one size of the inputs decides are taken: TensorRT-RTX builds no If in an If, int8 sees no body.

    x.squeeze(1), traced by torch:    c = Shape(x)[1] == 1
                                      y = If(c) {Squeeze(x, 1)} else {Identity(x)}
    x has one size there        -->   y = Squeeze(x, 1)

A condition counts as known when it follows from constants and from sizes that onnx's inference derives from the inputs
alone: what the file itself says of its inner shapes may be wrong. Branches inside other branches come up with them.

Not here: conditions that depend on values, or on sizes that may differ; those stay. Bodies of Loop and Scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.passes.shared.graph import Namer, copy_without_weights, is_onnx, read_constant, replace_output

#: Integers and truths are followed through these; other operators are not asked.
_FOLLOWED = (
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Floor", "Gather", "Greater",
    "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range",
    "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Squeeze", "Sub", "Transpose",
    "Unsqueeze", "Where", "Xor",
)  # fmt: skip
_MOST_ELEMENTS = 64

_Known = NDArray[Any] | None


def take_known_branches(model: ir.Model, sizes: Mapping[str, int]) -> int:
    """Replace every If of the main graph whose condition is known by the branch that it takes, in place.

    Args:
        sizes: dims of the inputs that have one size.

    Returns: how many were replaced.
    """
    taken = 0
    while any(is_onnx(node, "If") for node in model.graph):
        conditions = _find_conditions(model, sizes)
        known = [(node, conditions.find(node.inputs[0])) for node in model.graph if is_onnx(node, "If")]
        found = [(node, bool(value.reshape(()))) for node, value in known if value is not None and value.size == 1]
        if not found:
            break
        for node, condition in found:
            _take(model, node, node.attributes["then_branch" if condition else "else_branch"].as_graph())
        taken += len(found)
    return taken


def _find_conditions(model: ir.Model, sizes: Mapping[str, int]) -> _Conditions:
    """Shapes give integers, and integers (of a Pad, a Reshape) shapes: in turn, until nothing new is known."""
    known: dict[str, NDArray[Any]] = {}
    while True:
        conditions = _Conditions(model, _infer_shapes(model, sizes, known))
        values = [(value.name or "", conditions.find(value)) for node in model.graph for value in node.outputs]
        found = {name: array for name, array in values if array is not None}
        if len(found) == len(known):
            return conditions
        known = found


def _infer_shapes(
    model: ir.Model, sizes: Mapping[str, int], known: Mapping[str, NDArray[Any]]
) -> dict[str, list[int | None]]:
    """Name -> sizes of the main graph's values, from its inputs and from the integers that are known alone."""
    stored = set(model.graph.initializers)
    proto = ir.to_proto(copy_without_weights(model))
    del proto.graph.value_info[:]
    rest = [node for node in proto.graph.node if not all(name in known for name in node.output)]
    computed = [name for node in proto.graph.node for name in node.output if name in known]
    del proto.graph.node[:]
    proto.graph.node.extend(rest)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(known[name], name) for name in computed)
    for value in proto.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in sizes:
                size.dim_value = sizes[size.dim_param]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        inferred = proto.graph
    shaped = [value for value in (*inferred.input, *inferred.value_info) if value.name not in stored]
    return {
        value.name: [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]
        for value in shaped
        if (kind := value.type.tensor_type).HasField("shape")
    }


class _Conditions:
    """Small integers and truths that follow from shapes and constants."""

    def __init__(self, model: ir.Model, shapes: Mapping[str, list[int | None]]) -> None:
        self.opset, self.shapes = model.opset_imports[""], shapes
        self.known: dict[ir.Value, _Known] = {}

    def find(self, value: ir.Value | None) -> _Known:
        """What `value` always is, or None."""
        if value is None:
            return None
        if value not in self.known:
            self.known[value] = None  # of a circle
            self.known[value] = self._find(value)
        return self.known[value]

    def _find(self, value: ir.Value) -> _Known:
        tensor = read_constant(value)
        if tensor is not None:
            return tensor.numpy() if tensor.size <= _MOST_ELEMENTS and tensor.dtype != ir.DataType.STRING else None
        node = value.producer()
        if node is None or not is_onnx(node, "Shape", "Size", *_FOLLOWED):
            return None
        if node.op_type in ("Shape", "Size"):
            return self._find_shape(node)
        if is_onnx(node, "Gather") and (picked := self._pick_size(node)) is not None:
            return picked
        inputs = [None if one is None else self.find(one) for one in node.inputs]
        if any(array is None and one is not None for array, one in zip(inputs, node.inputs, strict=True)):
            return None
        return self._evaluate(node, inputs)

    def _find_shape(self, node: ir.Node) -> _Known:
        sizes = self._read_sizes(node)
        if sizes is None or None in sizes:
            return None
        return np.array(math.prod(sizes) if node.op_type == "Size" else sizes, np.int64)  # type: ignore[arg-type]

    def _read_sizes(self, node: ir.Node) -> list[int | None] | None:
        """The sizes that a Shape or Size node is of."""
        value = node.inputs[0]
        tensor = read_constant(value)
        sizes = self.shapes.get(value.name or "") if value is not None and tensor is None else None
        if tensor is not None:
            sizes = [int(size) for size in tensor.shape.numpy()]
        if sizes is None:
            return None
        start, end = (node.attributes[n].as_int() if n in node.attributes else None for n in ("start", "end"))
        return sizes[start:end]

    def _pick_size(self, node: ir.Node) -> _Known:
        """One size of a shape whose others may be open."""
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        index = self.find(node.inputs[1])
        if source is None or not is_onnx(source, "Shape") or index is None or index.size != 1:
            return None
        sizes, place = self._read_sizes(source), int(index.reshape(()))
        if sizes is None or not -len(sizes) <= place < len(sizes) or sizes[place] is None:
            return None
        return np.full(index.shape, sizes[place], np.int64)

    def _evaluate(self, node: ir.Node, inputs: list[_Known]) -> _Known:
        """By onnx's reference, one node at a time."""
        given = {f"i{index}": array for index, array in enumerate(inputs) if array is not None}
        proto = ir.to_proto(node)
        proto.input[:] = [f"i{index}" if array is not None else "" for index, array in enumerate(inputs)]
        proto.output[:] = ["o"]
        graph = onnx.helper.make_graph(
            [proto], "one", [_describe(name, array) for name, array in given.items()], [onnx.ValueInfoProto(name="o")]
        )
        opsets = [onnx.helper.make_opsetid("", node.version or self.opset)]
        try:
            evaluator = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
            (found,) = evaluator.run(None, given)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, ZeroDivisionError):
            return None  # whatever is wrong with it, the model's own run will say
        return np.asarray(found) if np.size(found) <= _MOST_ELEMENTS else None


def _describe(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _take(model: ir.Model, node: ir.Node, body: ir.Graph) -> None:
    """Put the nodes of `body` where `node` was; their values get names that no other scope uses."""
    graph, namer = model.graph, Namer(model)
    results, nodes = list(body.outputs), list(body)
    body.outputs.clear()
    body.remove(nodes)
    for value in list(body.initializers.values()):
        assert value.name is not None
        del body.initializers[value.name]
        value.name = namer(value.name)
        graph.register_initializer(value)
    for one in nodes:
        for value in one.outputs:
            value.name = namer(value.name) if value.name else value.name
    identities = [ir.node("Identity", [value]) for value in results]
    for old, identity in zip(node.outputs, identities, strict=True):
        identity.name = namer(f"{node.name or 'If'}/{old.name}")
        identity.outputs[0].name = namer(f"{old.name}/taken")
        identity.outputs[0].type = old.type
    graph.insert_before(node, [*nodes, *identities])
    for old, identity in zip(node.outputs, identities, strict=True):
        replace_output(graph, old, identity.outputs[0])
        if not identity.outputs[0].is_graph_output():
            identity.outputs[0].shape = None  # the If's own covers both branches
    graph.remove(node, safe=True)
