"""CheckGraph: the last pass of every pipeline; what it lets through, a parser of that opset reads.

onnx's checker runs on the graph without its large weights, and every node with a schema is held to strong typing:
one type per type variable, no type that the operator does not take.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from exporters.passes.shared.graph import copy_without_weights, describe_node
from exporters.passes.shared.types import find_schema, find_type_errors
from specs.errors import GraphError

_ANOTHER_WAY = "choose another --precision or --target, and report this with the model"


class CheckGraph(ir.passes.InPlacePass):
    """Raises GraphError; changes nothing."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        try:
            onnx.checker.check_model(ir.to_proto(copy_without_weights(model)))
        except (onnx.checker.ValidationError, ValueError) as error:
            raise GraphError(
                "the lowered graph is not valid ONNX",
                got=str(error).strip().splitlines()[0],
                fix=_ANOTHER_WAY,
            ) from error
        for node in model.graph.all_nodes():
            schema = find_schema(node, model.opset_imports)
            errors = [] if schema is None else find_type_errors(node, schema)
            if errors:
                raise GraphError(
                    f"{describe_node(node)} mixes types",
                    where=node.name,
                    got=errors[0],
                    fix=_ANOTHER_WAY,
                )
        return ir.passes.PassResult(model, modified=False)
