"""What a custom op is on the ONNX side: a schema, a translation from torch, and a body in standard ops.

    torch.ops.metagen.attention(...) --translate--> metagen::MetagenAttention[attributes] --body--> MatMul, Softmax, ...

Every distinct set of attributes gets its own body: a FunctionProto whose `overload` spells the attributes, so that a
body holds constants instead of branching on attributes. Bodies use only ops whose schemas are the same from opset 13
to 24, so that one body inlines at any opset we lower to; a runtime that does not know the op runs the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import tape

DOMAIN = "metagen"
DOMAIN_VERSION = 1

#: Stands for "must not be seen" in an additive mask. Finite, so that a fully masked row is uniform instead of NaN.
MASKED = float(np.finfo(np.float32).min)

_TYPES = {
    "T": [f"tensor({name})" for name in ("float", "float16", "bfloat16", "double")],
    "I": ["tensor(int64)"],
    "B": ["tensor(bool)"],
}

Attributes = Mapping[str, int | float | str]


class Body(tape.Tape):
    """Records the nodes of a function body: `body("MatMul", a, b)`."""

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.op(op_type, inputs, attributes)

    def constant(self, value: float | int | Sequence[float] | Sequence[int]) -> ir.Value:
        """Floats become float32, ints become int64."""
        array = np.asarray(value)
        dtype = np.float32 if array.dtype.kind == "f" else np.int64
        return self.op("Constant", [], {"value": ir.tensor(array.astype(dtype))})

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one axis, as an int64 scalar."""
        return self("Squeeze", self.op("Shape", [value], {"start": axis, "end": axis + 1}), self.constant([0]))

    def count_up(self, stop: ir.Value) -> ir.Value:
        """0, 1, ..., stop - 1."""
        return self("Range", self.constant(0), stop, self.constant(1))


@dataclass(frozen=True, kw_only=True)
class CustomOp:
    """One row of the table of custom ops.

    Args:
        name: ONNX op type; starts with `Metagen` and is no standard op's name (TensorRT looks at it before the domain).
        torch_op: the overload of `torch.ops.metagen` that it stands for.
        inputs: name -> type: T the float type that all share, I int64, B bool. A trailing `?` marks an optional one.
        outputs: names; all of type T.
        attributes: name -> ONNX type. A trailing `?` marks one that may be left out.
        translate: called by the exporter with torch's arguments; returns the traced node's outputs.
        build_body: records the body and returns its outputs; an absent optional input is None.
    """

    name: str
    torch_op: Callable[..., Any]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    attributes: Mapping[str, ir.AttributeType]
    translate: Callable[..., Any]
    build_body: Callable[[Body, list[ir.Value | None], Attributes], Sequence[ir.Value]]


def make_schema(op: CustomOp) -> onnx.defs.OpSchema:
    """The op's ONNX schema, from which tracing also infers the type of each output."""
    schema = onnx.defs.OpSchema
    required, optional = schema.FormalParameterOption.Single, schema.FormalParameterOption.Optional
    return schema(
        op.name,
        DOMAIN,
        DOMAIN_VERSION,
        (op.translate.__doc__ or "").strip(),
        inputs=[
            schema.FormalParameter(name.rstrip("?"), kind, param_option=optional if name.endswith("?") else required)
            for name, kind in op.inputs.items()
        ],
        outputs=[schema.FormalParameter(name, "T") for name in op.outputs],
        type_constraints=[(kind, _TYPES[kind], "") for kind in sorted({*op.inputs.values(), "T"})],
        attributes=[
            schema.Attribute(name.rstrip("?"), getattr(schema.AttrType, kind.name), "", required=not name.endswith("?"))
            for name, kind in op.attributes.items()
        ],
    )


def read_attributes(op: CustomOp, node: ir.Node) -> Attributes:
    """The node's attributes in the op's order; an optional one that it does not have is left out."""
    names = {name.rstrip("?"): name.endswith("?") for name in op.attributes}
    return {name: node.attributes[name].value for name, may in names.items() if not may or name in node.attributes}


def spell_overload(op: CustomOp, node: ir.Node) -> str:
    """`causal1_groups4_scale0.125_window0`: equal for nodes that share a body."""
    present = "".join(f"_{name.rstrip('?')}" for name, value in _pair_inputs(op, node) if name.endswith("?") and value)
    return "_".join(f"{name}{value}" for name, value in read_attributes(op, node).items()) + present


def build_function(op: CustomOp, node: ir.Node, *, opset: int) -> ir.Function:
    """The body for `node`'s attributes and inputs."""
    pairs = _pair_inputs(op, node)
    values = [ir.Value(name=name.rstrip("?")) if given is not None else None for name, given in pairs]
    body = Body()
    outputs = op.build_body(body, values, read_attributes(op, node))
    for name, output in zip(op.outputs, outputs, strict=True):
        output.name = name
    graph = ir.Graph(
        [
            value if value is not None else ir.Value(name=name.rstrip("?"))
            for (name, _), value in zip(pairs, values, strict=True)
        ],
        list(outputs),
        nodes=body.nodes,
        opset_imports={"": opset},
        name=op.name,
    )
    kinds = {name.rstrip("?"): kind for name, kind in op.attributes.items()}
    attributes = [ir.Attr(name, kinds[name], None) for name in read_attributes(op, node)]
    return ir.Function(DOMAIN, op.name, spell_overload(op, node), graph=graph, attributes=attributes)


def _pair_inputs(op: CustomOp, node: ir.Node) -> list[tuple[str, ir.Value | None]]:
    given = [*node.inputs, *[None] * (len(op.inputs) - len(node.inputs))]
    return list(zip(op.inputs, given, strict=True))
