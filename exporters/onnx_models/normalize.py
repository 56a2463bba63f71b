"""What files of other makers say in many ways, said in one: on the protobuf, before anything else looks at it.

    weights that are listed as inputs too        -> constants (every runtime's default; IR 3 lists all of them)
    a negative size, or one called ? or None     -> an unknown one (how Keras, CNTK and Paddle converters write it)
    nodes before what they read                  -> in order (half-precision converters put their casts last)
    the standard domain by its long name         -> without one
    a Loop without condition and state           -> with a state that nothing reads (onnx_ir drops inputs left empty)
    several nodes of one name                    -> a name each (ONNX Runtime takes no other file)
    external tensors inside nodes and branches   -> read into the graph: only its own weights may lie outside
    sparse weights                               -> dense ones (onnx_ir would drop them without a word)
    functions of another opset than the model's  -> inlined and converted by onnx

Not here: what makes a file unusable (`read`), and anything that targets differ in (`passes`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from specs.errors import GraphError

_LARGEST_DENSE_BYTES = 1 << 30
#: What converters write where a size is not known.
_NO_NAMES = ("?", "-1", "None", "unknown")
_LONG_NAME = "ai.onnx"
_LOOP_OWN = 2  # inputs of a Loop before its states: how often, and whether at all
_STATE = "metagen_loop_state"
_FIRST_IR_WITHOUT_INPUTS = 4  # before it, every initializer had to be an input


def normalize(path: Path, proto: onnx.ModelProto) -> list[str]:
    """Change `proto` in place; its external data has been checked. Returns what a user should know of it.

    Raises:
        GraphError: a sparse weight is malformed or too large.
    """
    _spell_standard_domain(proto)
    for graph in list_graphs(proto.graph):
        _densify(path, graph)
        _forget_unknown_sizes(graph)
        _sort_nodes(graph)
    for index, node in enumerate(list_nodes(proto)):
        if (
            node.op_type == "Loop"
            and not node.domain
            and len(node.input) == _LOOP_OWN
            and node.input[0]
            and not node.input[1]
        ):
            _give_state(node, index)
    for tensor in list_inner_tensors(proto):
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    notes = _fix_weights(proto)
    notes += _name_nodes_apart(proto)
    return notes + _convert_functions(proto)


def _spell_standard_domain(proto: onnx.ModelProto) -> None:
    for node in list_nodes(proto):
        node.domain = "" if node.domain == _LONG_NAME else node.domain
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        known = {entry.version for entry in imports if not entry.domain}
        for entry in [entry for entry in imports if entry.domain == _LONG_NAME]:
            if entry.version in known:
                imports.remove(entry)
            elif not known:
                entry.domain = ""


def _give_state(loop: onnx.NodeProto, index: int) -> None:
    """Without its empty last input a Loop is no longer valid; a state behind it changes nothing that it computes.

    It starts as the number of iterations, which is an int64 scalar that is there. (A Loop without either never ends.)
    """
    (body,) = _list_bodies(loop)
    name = f"{_STATE}_{index}"
    loop.input.append(loop.input[0])
    body.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    body.node.append(onnx.helper.make_node("Identity", [name], [f"{name}_next"]))
    body.output.insert(1, onnx.helper.make_tensor_value_info(f"{name}_next", onnx.TensorProto.INT64, None))
    loop.output.insert(0, f"{name}_last")


def list_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies inside it, outermost first."""
    yield graph
    for node in graph.node:
        for body in _list_bodies(node):
            yield from list_graphs(body)


def list_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of the bodies inside it, and of the functions."""
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        yield from walk_nodes(nodes)


def walk_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes, and those of the bodies inside them."""
    for node in nodes:
        yield node
        for body in _list_bodies(node):
            yield from walk_nodes(body.node)


def list_inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor but the main graph's plain initializers: sparse ones, those of nodes, of the bodies inside them."""
    for graph in list_graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in list_nodes(proto):
        for body in _list_bodies(node):
            yield from body.initializer
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)


def _list_bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _densify(path: Path, graph: onnx.GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        dtype = onnx.helper.tensor_dtype_to_np_dtype(sparse.values.data_type)
        if math.prod(sparse.dims) * dtype.itemsize > _LARGEST_DENSE_BYTES:
            raise GraphError(
                f"sparse initializer '{name}' is too large to store densely",
                where=str(path),
                fix="store it densely as external data, and export the file again",
            )
        try:
            dense = np.zeros(tuple(sparse.dims), dtype=dtype)
            indices = onnx.numpy_helper.to_array(sparse.indices)
            flat = np.ravel_multi_index(tuple(indices.T), dense.shape) if indices.ndim == 2 else indices
            dense.reshape(-1)[flat] = onnx.numpy_helper.to_array(sparse.values)
        except (ValueError, IndexError, TypeError) as error:
            raise GraphError(
                f"sparse initializer '{name}' is malformed",
                where=str(path),
                got=str(error),
                fix="export the file again",
            ) from None
        graph.initializer.append(onnx.numpy_helper.from_array(dense, name))
    del graph.sparse_initializer[:]


def _forget_unknown_sizes(graph: onnx.GraphProto) -> None:
    """Two sizes of one name are equal; two that are called `?` are not."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim if value.type.tensor_type.HasField("shape") else ():
            if size.HasField("dim_value") and size.dim_value < 0:
                size.ClearField("dim_value")
            elif size.dim_param.strip() in _NO_NAMES:
                size.ClearField("dim_param")


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """The order the file has, but for nodes that must wait; a circle is left for the checker to name."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    missing: list[int] = []
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        needed = {producers[name] for name in _list_reads(node) if name in producers}
        missing.append(len(needed))
        for other in needed:
            readers.setdefault(other, []).append(index)
    ready = [index for index, count in enumerate(missing) if not count]  # ascending, so a heap
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for index in readers.get(order[-1], ()):
            missing[index] -= 1
            if not missing[index]:
                heapq.heappush(ready, index)
    if len(order) == len(graph.node) and order != sorted(order):
        nodes = onnx.GraphProto(node=[graph.node[index] for index in order])
        del graph.node[:]
        graph.node.extend(nodes.node)


def _list_reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for body in _list_bodies(node):
        for graph in list_graphs(body):
            for inner in graph.node:
                yield from inner.input


def _fix_weights(proto: onnx.ModelProto) -> list[str]:
    """The main graph's inputs are what a caller must give; a default that could be overridden stays what it is."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    both = [value for value in proto.graph.input if value.name in stored]
    for value in both:
        proto.graph.input.remove(value)
    if proto.ir_version >= _FIRST_IR_WITHOUT_INPUTS:
        return [f"input '{value.name}' has a default and becomes a constant" for value in both]
    proto.ir_version = _FIRST_IR_WITHOUT_INPUTS
    return []


def _name_nodes_apart(proto: onnx.ModelProto) -> list[str]:
    used: set[str] = set()
    renamed = 0
    for graph in list_graphs(proto.graph):
        for node in graph.node:
            name, suffix = node.name, 1
            while name and name in used:
                suffix += 1
                name = f"{node.name}_{suffix}"
            used.add(name)
            renamed += name != node.name
            node.name = name
    return [f"{renamed} nodes shared their names and were named apart"] if renamed else []


def _convert_functions(proto: onnx.ModelProto) -> list[str]:
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    foreign = [
        function.name
        for function in proto.functions
        if any(opsets.get(entry.domain, entry.version) != entry.version for entry in function.opset_import)
    ]
    if not foreign:
        return []
    try:
        proto.CopyFrom(onnx.inliner.inline_local_functions(proto, convert_version=True))
    except RuntimeError:
        return []  # the pass that inlines will name the function
    return [f"functions of another opset were converted: {', '.join(foreign)}"]
