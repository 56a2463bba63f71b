"""Small edits that several passes share: new nodes that inherit where they come from, constants, notes.

A pass leaves what a person must know in `model.meta` (not serialised): why a node stays float32, why a rewrite did not
fire. `run_pipeline` returns these notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from specs.errors import GraphError

_NOTES_KEY = "metagen.notes"
_SMALL_BYTES = 1000
_ANOTHER_WAY = "write it in other operators, or choose another --target"


@dataclass(frozen=True)
class Notes:
    """What passes said about one model, in order."""

    log: list[str] = field(default_factory=list)
    keep_fp32: dict[str, str] = field(default_factory=dict)  # node's name -> reason


def notes_of(model: ir.Model) -> Notes:
    """The model's notes, made on first use."""
    notes = model.meta.setdefault(_NOTES_KEY, Notes())
    assert isinstance(notes, Notes)
    return notes


def copy_notes(source: ir.Model, model: ir.Model) -> None:
    """Let `model` begin with the notes of `source`, and add to them without changing those."""
    if _NOTES_KEY in source.meta:
        notes = notes_of(source)
        model.meta[_NOTES_KEY] = Notes(log=[*notes.log], keep_fp32={**notes.keep_fp32})


def describe_node(node: ir.Node) -> str:
    """`MatMul 'blocks.0.mlp'`: how errors and the log name a node."""
    prefix = f"{node.domain}::" if node.domain else ""
    return f"{prefix}{node.op_type} '{node.name or (node.outputs[0].name if node.outputs else '')}'"


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """True for a node of the standard domain with one of these types."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def list_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every subgraph, outermost first. Functions are not entered: pipelines inline them."""
    yield model.graph
    yield from model.graph.subgraphs()


def list_subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of an If, Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


class Namer:
    """Gives value and node names that no graph of the model uses yet."""

    def __init__(self, model: ir.Model) -> None:
        self._used: set[str] = set()
        for graph in list_graphs(model):
            self._used.update(name for name in graph.initializers if name)
            self._used.update(value.name for value in graph.inputs if value.name)
            for node in graph:
                self._used.update(value.name for value in node.outputs if value.name)
                if node.name:
                    self._used.add(node.name)

    def __call__(self, wanted: str) -> str:
        name, suffix = wanted, 1
        while name in self._used:
            suffix += 1
            name = f"{wanted}_{suffix}"
        self._used.add(name)
        return name


class Builder:
    """Makes nodes and constants in one graph, named after and with the metadata of the node they stand for."""

    def __init__(self, graph: ir.Graph, origin: ir.Node, namer: Namer) -> None:
        self.graph, self.origin, self.namer = graph, origin, namer
        self.nodes: list[ir.Node] = []

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
        name: str = "",
        attributes: Mapping[str, int | float | str] | None = None,
    ) -> ir.Value:
        """Append a node (see `insert_before`) and return its output."""
        node = ir.node(
            op_type,
            inputs,
            attributes=attributes,
            domain=domain,
            metadata_props=dict(self.origin.metadata_props),
        )
        node.name = self.namer(name or f"{self.origin.name or self.origin.op_type}/{op_type}")
        node.outputs[0].name = self.namer(f"{node.name}/out")
        if dtype is not None:
            node.outputs[0].type = ir.TensorType(dtype)
        node.outputs[0].shape = shape.copy() if shape is not None else None
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray, name: str = "") -> ir.Value:
        """A new initializer of the graph."""
        tensor = ir.tensor(array)
        return add_initializer(self.graph, tensor, self.namer(name or f"{self.origin.name}/constant"))

    def require_opset(self, version: int) -> None:
        """Say that the node built last means what it does from `version` on: `SetOpset` raises the model to it."""
        self.nodes[-1].version = version

    def insert_before(self, node: ir.Node) -> None:
        """Put what was built in front of `node`."""
        self.graph.insert_before(node, self.nodes)
        self.nodes = []


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Register `tensor` under `name`, which must be free."""
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]
    tensor.name = name
    graph.register_initializer(value)
    return value


def read_constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind an initializer that no caller can override, or behind a Constant node; else None."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    producer = value.producer()
    if producer is not None and is_onnx(producer, "Constant") and "value" in producer.attributes:
        attribute = producer.attributes["value"]
        return None if attribute.is_ref() else attribute.as_tensor()
    return None


def replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old` did, under its name: the interface and every report keep it."""
    name = old.name
    old.name = f"{name}/replaced"
    new.name = name
    new.shape = new.shape or old.shape
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    old.replace_all_uses_with(new)


def take_over(graph: ir.Graph, dead: Iterable[ir.Node], named: ir.Node, new: ir.Value) -> None:
    """Put `new` in place of the output of the first of `dead`, remove them all, give its node the name of `named`."""
    nodes = list(dead)
    replace_output(graph, nodes[0].outputs[0], new)
    remove_dead(graph, nodes)
    producer = new.producer()
    assert producer is not None
    if named.graph is None:
        producer.name = named.name


def copy_without_weights(model: ir.Model) -> ir.Model:
    """For onnx's own checker and inference: large weights become inputs, small ones (shapes, axes) are kept inside."""
    light = model.clone()
    for value in list(light.graph.initializers.values()):
        tensor = value.const_value
        assert value.name is not None
        if tensor is not None and tensor.nbytes <= _SMALL_BYTES:
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)
            continue
        del light.graph.initializers[value.name]
        value.const_value = None
        if not value.is_graph_input():
            light.graph.inputs.append(value)
    return light


def refuse(node: ir.Node, reason: str, *, fix: str = _ANOTHER_WAY) -> GraphError:
    """The error for a node that cannot be taken."""
    return GraphError(f"{describe_node(node)} cannot be lowered: {reason}", where=node.name or None, fix=fix)


def remove_dead(graph: ir.Graph, nodes: Iterable[ir.Node | None]) -> None:
    """Remove the nodes of `nodes`, and then their producers, that nothing uses any more."""
    pending = [node for node in nodes if node is not None]
    while pending:
        node = pending.pop()
        if node.graph is not graph or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        producers = [value.producer() for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        pending.extend(producer for producer in producers if producer is not None)
