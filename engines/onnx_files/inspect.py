"""What an ONNX file holds: opsets, interface, operators, weights, precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.onnx_files.precision import measure_graph
from engines.onnx_files.read import read_onnx
from engines.onnx_files.records import Node, Value
from specs.report import PrecisionShares

#: Domains of plain ONNX.
STANDARD_DOMAINS = ("", "ai.onnx.ml")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one ONNX file holds."""

    path: Path
    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: Mapping[str, int]  # "MatMul" or "metagen.MetagenAttention" -> how many, most first
    inlined_nodes: int  # where every function body stands in place of its node; constants are no operators
    custom_ops: Mapping[str, bool]  # "domain.Name" -> has a function body, so that any runtime can run it
    weight_bytes: int
    external_files: tuple[str, ...]
    macs: float
    shares: PrecisionShares


def inspect_model(path: Path, sizes: Mapping[str, int] | None = None) -> Inspection:
    """Read an ONNX file; `sizes` gives the sizes of dynamic dims by name. Raises GraphError."""
    model = read_onnx(path)
    bodies = {(domain, name) for domain, name, _ in model.functions}
    calls = [node for node in model.graph.nodes for node in _walk(node)]
    named = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in calls)
    custom = {
        f"{n.domain}.{n.op_type}": (n.domain, n.op_type) in bodies for n in calls if n.domain not in STANDARD_DOMAINS
    }
    shares, macs = measure_graph(model, sizes or {})
    return Inspection(
        path=path,
        producer=model.producer,
        ir_version=model.ir_version,
        opsets=model.opsets,
        inputs=model.graph.inputs,
        outputs=model.graph.outputs,
        operators=dict(named.most_common()),
        inlined_nodes=_count_inlined(model.graph.nodes, model.functions, {}),
        custom_ops=custom,
        weight_bytes=sum(w.nbytes for w in model.walk_weights()),
        external_files=model.list_external_files(),
        macs=macs,
        shares=shares,
    )


def _walk(node: Node) -> list[Node]:
    return [node, *(inner for body in node.subgraphs for child in body.nodes for inner in _walk(child))]


Key = tuple[str, str, str]  # domain, operator, overload
Bodies = Mapping[Key, Sequence[Node]]


def _count_inlined(nodes: Sequence[Node], functions: Bodies, known: dict[Key, int]) -> int:
    """Operators that run. `known` holds each function's count; one that calls itself, which ONNX forbids, is one."""
    total = 0
    for node in nodes:
        key = (node.domain, node.op_type, node.overload)
        if key in functions:
            if key not in known:
                known[key] = 1
                known[key] = _count_inlined(functions[key], functions, known)
            total += known[key]
        elif node.op_type != "Constant":
            total += 1 + sum(_count_inlined(body.nodes, functions, known) for body in node.subgraphs)
    return total
