"""What onnx's operator schemas say about types: which port of a node takes which type, and whether a node obeys.

A *port* is one actual input or output of a node. Its formal parameter names either a literal type ("tensor(float)") or
a type variable ("T"), and all ports of one variable must have one type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir


@dataclass(frozen=True)
class Port:
    """One actual input or output with the types its schema allows."""

    value: ir.Value
    index: int
    is_output: bool
    variable: str  # "" when the type is literal or each argument is free
    allowed: frozenset[str]


def find_schema(node: ir.Node, opsets: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    """The schema of this node at the model's opset, None for an operator that onnx does not know."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain, opsets.get("ai.onnx") if domain == "" else None)
    if version is None:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def list_ports(node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[Port]:
    """Every present input and output. Arguments beyond a non-variadic signature are left out."""
    variables = {constraint.type_param_str for constraint in schema.type_constraints}
    for is_output, values, formals in ((False, node.inputs, schema.inputs), (True, node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            formal = _find_formal(formals, index)
            if value is None or formal is None or (is_output and not value.name and not value.uses()):
                continue
            shared = formal.is_homogeneous and formal.type_str in variables
            yield Port(value, index, is_output, formal.type_str if shared else "", frozenset(formal.types))


def _find_formal(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int
) -> onnx.defs.OpSchema.FormalParameter | None:
    if index < len(formals):
        return formals[index]
    if formals and formals[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
        return formals[-1]
    return None


def spell_type(kind: ir.TypeProtocol | None) -> str | None:
    """`tensor(float16)`, `seq(tensor(float))`: the way onnx spells a type; None when it is not known."""
    if isinstance(kind, ir.SequenceType):
        return _wrap("seq", spell_type(kind.elem_type))
    if isinstance(kind, ir.OptionalType):
        return _wrap("optional", spell_type(kind.elem_type))
    if isinstance(kind, (ir.TensorType, ir.SparseTensorType)):
        if kind.dtype == ir.DataType.UNDEFINED:
            return None
        return _wrap("tensor" if isinstance(kind, ir.TensorType) else "sparse_tensor", kind.dtype.name.lower())
    return None


def _wrap(outer: str, inner: str | None) -> str | None:
    return None if inner is None else f"{outer}({inner})"


def spell_dtype(dtype: ir.DataType) -> str:
    """`tensor(float16)`."""
    return f"tensor({dtype.name.lower()})"


def find_type_errors(node: ir.Node, schema: onnx.defs.OpSchema) -> list[str]:
    """What strong typing would reject: a port of a type its schema does not allow, or a variable of two types."""
    bound: dict[str, str] = {}
    errors = []
    for port in list_ports(node, schema):
        spelled = spell_type(port.value.type)
        if spelled is None:
            continue
        if spelled not in port.allowed:
            errors.append(f"'{port.value.name}' is {spelled}, which {node.op_type} does not take")
        elif port.variable and bound.setdefault(port.variable, spelled) != spelled:
            errors.append(f"'{port.value.name}' is {spelled} where another {port.variable} is {bound[port.variable]}")
    return errors
