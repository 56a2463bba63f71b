"""ConvertToFloat16: float32 tensors become float16 (or bfloat16), written into the graph.

Each node either runs in half precision or keeps float32 with a reason (`keep_float32`, or its schema takes no half
precision). A value has the type its producer gives; where a consumer needs the other one, a Cast stands behind the
producer, one per value and type. Constants are converted in place of casting, lazily: a weight is read when the file
is written. Graph inputs and outputs keep float32, so that every precision of a graph has the same interface; so do the
inputs and outputs of If, Loop and Scan bodies, inside which the conversion goes on.

    x f32 --Cast--> x f16 --MatMul(W f16)--> y f16 --Cast--> Pow f32 ...

A finite constant beyond float16 in a mask saturates: to +-32752, half the largest number, so that adding scores
to it cannot reach infinity; in Clip, Min and Max to +-65504.

Not here: double precision, sequences and optionals, which are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.passes.keep_plugins import HALF_PORTS, is_plugin
from exporters.passes.shared.derived import derive, find_stored, list_pieces
from exporters.passes.shared.graph import (
    Namer,
    add_initializer,
    describe_node,
    is_onnx,
    list_graphs,
    list_subgraphs,
    notes_of,
    read_constant,
    refuse,
)
from exporters.passes.shared.keep_float32 import LARGEST_FLOAT16, find_kept, is_float
from exporters.passes.shared.types import find_schema, find_type_errors, list_ports, spell_dtype, spell_type

_FLOAT = spell_dtype(ir.DataType.FLOAT)
#: These set the type of their output by an attribute that this pass rewrites.
_ATTRIBUTE_TYPED = ("Cast", "ConstantOfShape")
_LIMITING = frozenset({"Clip", "Min", "Max"})
_MASK_LIMIT = LARGEST_FLOAT16 / 2
#: Weights near zero that vanish are harmless; from this share of a tensor on they are worth a line in the log.
_NOTABLE_SHARE = 1e-3
_CONVERTED_AT_ONCE = 4 << 20  # elements


class ConvertToFloat16(ir.passes.InPlacePass):
    """Needs types (InferTypes) and an inlined model.

    Args:
        half: FLOAT16 or BFLOAT16.
    """

    def __init__(self, half: ir.DataType = ir.DataType.FLOAT16) -> None:
        assert half in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        self.half = half

    def requires(self, model: ir.Model) -> None:
        if model.functions:
            raise ir.passes.PreconditionError("functions must be inlined first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        _require_plain_constants(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        ports = self._plan(model)
        if not ports:
            return ir.passes.PassResult(model, modified=False)
        rewriter = _Rewriter(model, self.half, ports)
        for graph in list_graphs(model):
            rewriter.rewrite(graph)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No node mixes types: strong typing takes the graph."""
        for node in model.graph.all_nodes():
            schema = find_schema(node, model.opset_imports)
            errors = find_type_errors(node, schema) if schema is not None else []
            if errors:
                raise ir.passes.PostconditionError(f"{describe_node(node)}: {errors[0]}")

    def _plan(self, model: ir.Model) -> dict[ir.Node, HalfPorts]:
        """The ports of every node that turn to half precision; notes the others with their reasons."""
        planned: dict[ir.Node, HalfPorts] = {}
        for node, ports in plan_half(model, self.half).items():
            if isinstance(ports, str):
                notes_of(model).keep_fp32[node.name or describe_node(node)] = ports
            else:
                planned[node] = ports
        return planned


class HalfPorts:
    """Indices of the inputs and outputs of one node that are half precision."""

    def __init__(self, inputs: Iterable[int] = (), outputs: Iterable[int] = ()) -> None:
        self.inputs: set[int] = set(inputs)
        self.outputs: set[int] = set(outputs)


def plan_half(model: ir.Model, half: ir.DataType) -> dict[ir.Node, HalfPorts | str]:
    """For every node with float32 values, in graph order: what of it turns to half precision, or why nothing does."""
    kept = find_kept(model, half)
    return {
        node: kept.get(node) or _plan_node(node, find_schema(node, model.opset_imports), half)
        for node in model.graph.all_nodes()
        if any(_mentions_float(value) for value in (*node.inputs, *node.outputs))
    }


def _mentions_float(value: ir.Value | None) -> bool:
    return value is not None and _FLOAT in (spell_type(value.type) or "")


def _require_plain_constants(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if is_onnx(node, "Constant") and "sparse_value" in node.attributes:
            raise refuse(node, "sparse constants are not supported", fix="store the constant densely")


def _plan_node(node: ir.Node, schema: onnx.defs.OpSchema | None, half: ir.DataType) -> HalfPorts | str:
    """The ports that can be half precision by the schema, or why there are none."""
    if any(True for _ in list_subgraphs(node)):
        return "control flow: its inputs and outputs stay float32, its body is converted"
    if is_plugin(node):
        inputs, outputs = HALF_PORTS[node.op_type]
        return HalfPorts(inputs & {*range(len(node.inputs))}, outputs & {*range(len(node.outputs))})
    if schema is None:
        return "not an operator of onnx: nothing is known about the types it takes"
    ports, bound = HalfPorts(), set()
    for port in list_ports(node, schema):
        spelled = spell_type(port.value.type)
        if spelled is None:
            return f"the type of '{port.value.name}' is not known"
        if _FLOAT in spelled and spelled != _FLOAT:
            return f"'{port.value.name}' is a {spelled}"
        if not port.is_output and port.variable:
            bound.add(port.variable)
        if spelled != _FLOAT or spell_dtype(half) not in port.allowed:
            continue
        if not port.is_output:
            ports.inputs.add(port.index)
        elif port.variable in bound or _sets_own_type(node):
            ports.outputs.add(port.index)
        else:
            return "the type of its output is an attribute"
    if not ports.inputs and not ports.outputs:
        return f"{node.op_type} takes no {half.name.lower()}"
    return ports


def _sets_own_type(node: ir.Node) -> bool:
    """Operators whose output type this pass knows although no type variable says it."""
    if is_onnx(node, "DequantizeLinear"):  # from opset 23 the type of its scale, unless an attribute says otherwise
        return "output_dtype" not in node.attributes
    return node.op_type in _ATTRIBUTE_TYPED


class _Rewriter:
    """Retypes what was planned and casts where two types meet."""

    def __init__(self, model: ir.Model, half: ir.DataType, ports: dict[ir.Node, HalfPorts]) -> None:
        self.model, self.half, self.ports = model, half, ports
        self.namer = Namer(model)
        self.log = notes_of(model).log
        self.halves = {node.outputs[index] for node, port in ports.items() for index in port.outputs}
        self.cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.converted: dict[tuple[ir.Value, bool], ir.Value] = {}
        for value in self.halves:
            value.type = ir.TensorType(half)

    def rewrite(self, graph: ir.Graph) -> None:
        for node in list(graph):
            ports = self.ports.get(node)
            if ports is not None:
                self._set_type_attribute(node, ports)
            for index, value in enumerate(node.inputs):
                if value is None or not (is_float(value) or value in self.halves):
                    continue
                wants_half = ports is not None and index in ports.inputs
                if wants_half != (value in self.halves):
                    node.replace_input_with(index, self._convert(value, node, wants_half))
        for index, value in enumerate(graph.outputs):
            if value in self.halves:
                graph.outputs[index] = self._restore_output(graph, value)
        for value in list(graph.initializers.values()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                assert value.name is not None
                del graph.initializers[value.name]

    def _set_type_attribute(self, node: ir.Node, ports: HalfPorts) -> None:
        if 0 not in ports.outputs:
            return
        if is_onnx(node, "Cast"):
            node.attributes["to"] = ir.AttrInt64("to", self.half.value)
        elif is_onnx(node, "ConstantOfShape"):
            attribute = node.attributes.get("value")
            array = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
            limit = _MASK_LIMIT if self.half == ir.DataType.FLOAT16 else None
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_narrow(array, self.half, limit)))

    def _convert(self, value: ir.Value, node: ir.Node, to_half: bool) -> ir.Value:
        tensor = read_constant(value) if to_half else None
        if tensor is not None:
            return self._convert_constant(value, tensor, node)
        dtype = self.half if to_half else ir.DataType.FLOAT
        if (value, dtype) not in self.cast:
            self.cast[value, dtype] = self._insert_cast(value, dtype, node)
        return self.cast[value, dtype]

    def _insert_cast(self, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
        producer, graph = value.producer(), value.graph or user.graph
        assert graph is not None
        origin = producer or user
        cast = ir.node("Cast", [value], attributes={"to": dtype.value}, metadata_props=dict(origin.metadata_props))
        cast.name = self.namer(f"{value.name}/to_{dtype.name.lower()}")
        result = cast.outputs[0]
        result.name = self.namer(f"{value.name}/{dtype.name.lower()}")
        result.type, result.shape = ir.TensorType(dtype), value.shape.copy() if value.shape is not None else None
        if producer is not None:
            graph.insert_after(producer, cast)
        else:
            graph.insert_before(graph[0], cast)
        return result

    def _convert_constant(self, value: ir.Value, tensor: ir.TensorProtocol, node: ir.Node) -> ir.Value:
        """A half twin of an initializer; the original goes when nothing reads it any more."""
        limiting = node.op_type in _LIMITING
        if (value, limiting) not in self.converted:
            stored, limit = find_stored(tensor), None
            if self.half == ir.DataType.FLOAT16 and (stored is None or stored.dtype != self.half):
                limit = LARGEST_FLOAT16 if limiting else _MASK_LIMIT
                self._report_loss(value, tensor, node)
            graph = value.graph or node.graph
            assert graph is not None
            twin = narrow_lazily(tensor, self.half, limit)
            name = f"{value.name}/{self.half.name.lower()}"
            if twin is stored:
                name = stored.name or name
            self.converted[value, limiting] = add_initializer(graph, twin, self.namer(name))
        return self.converted[value, limiting]

    def _report_loss(self, value: ir.Value, tensor: ir.TensorProtocol, node: ir.Node) -> None:
        stored = find_stored(tensor)
        saturated = vanished = 0
        for piece in list_pieces(tensor):
            magnitude = np.abs(piece[np.isfinite(piece)])
            saturated += int((magnitude > LARGEST_FLOAT16).sum())
            vanished += int(((magnitude > 0) & (magnitude < 2.0**-25)).sum())
        if saturated and stored is not None:  # a weight that somebody stored with this range: not a mask
            raise refuse(
                node,
                f"{saturated} values of its weight '{value.name}', stored in bfloat16, are beyond float16's 65504",
                fix="ask for bf16 or fp32",
            )
        if saturated:
            self.log.append(f"ConvertToFloat16: {saturated} values of '{value.name}' saturate")
        if vanished > _NOTABLE_SHARE * tensor.size:
            self.log.append(f"ConvertToFloat16: {vanished} of {tensor.size} values of '{value.name}' become zero")

    def _restore_output(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """A float32 Cast with the output's name behind the half value, which is renamed."""
        producer = value.producer()
        assert producer is not None
        key = (value, ir.DataType.FLOAT)
        name = value.name
        restored = self.cast.get(key)
        if restored is None or restored.is_graph_output() or value.graph is not graph:
            restored = self._insert_cast_in(graph, value, producer)
            self.cast.setdefault(key, restored)
        if value.graph is graph:
            value.name = self.namer(f"{name}/{self.half.name.lower()}")
            restored.name = name
        return restored

    def _insert_cast_in(self, graph: ir.Graph, value: ir.Value, producer: ir.Node) -> ir.Value:
        if value.graph is graph:
            return self._insert_cast(value, ir.DataType.FLOAT, producer)
        cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT.value})
        cast.name = self.namer(f"{value.name}/to_float")
        cast.outputs[0].name = self.namer(f"{value.name}/float")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        graph.append(cast)
        return cast.outputs[0]


def narrow_lazily(tensor: ir.TensorProtocol, half: ir.DataType, limit: float | None) -> ir.TensorProtocol:
    """`tensor` in half precision, computed each time it is read; what is stored in it already is taken as it is."""
    stored = find_stored(tensor)
    if stored is not None and stored.dtype == half:
        return stored
    return derive(
        tensor, ("narrowed", half, limit), lambda array: _narrow(array, half, limit),
        dtype=half, shape=ir.Shape(tensor.shape.numpy()),
    )  # fmt: skip


def _narrow(array: np.ndarray, half: ir.DataType, limit: float | None) -> np.ndarray:
    """Round to half precision; finite values beyond float16 saturate to `limit`, infinities stay."""
    out = np.empty(array.shape, half.numpy())
    pieces, places = np.ascontiguousarray(array).reshape(-1), out.reshape(-1)
    for start in range(0, len(pieces), _CONVERTED_AT_ONCE):
        piece = pieces[start : start + _CONVERTED_AT_ONCE]
        if limit is not None:
            over = np.isfinite(piece) & (np.abs(piece) > LARGEST_FLOAT16)
            piece = np.where(over, np.copysign(np.float32(limit), piece), piece)
        places[start : start + _CONVERTED_AT_ONCE] = piece.astype(out.dtype)
    return out
