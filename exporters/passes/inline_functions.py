"""InlineFunctions: every call of a model-local function becomes its body.

TensorRT 8.6 knows no local functions, and a typed pass can only type what it sees. The work is done by onnx_ir's
InlinePass; this pass adds what third-party files need: names for nameless things first, and errors that name the call.

    metagen::MetagenGatedLinear(x, Wg, Wu)  ->  MatMul, Sigmoid, Mul, MatMul, Mul
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.passes.shared.graph import describe_node
from specs.errors import GraphError


class InlineFunctions(ir.passes.InPlacePass):
    """Raises GraphError for recursive functions, and for functions of another opset than the model's."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._require_bodies(model)
        outputs = [value.name for value in model.graph.outputs]
        named = common.NameFixPass()(model).modified
        try:
            inlined = common.InlinePass()(model).modified
        except (ValueError, ir.passes.PreconditionError) as error:
            raise GraphError(
                "the model's local functions cannot be inlined",
                got=str(error),
                fix="export the file again without local functions (onnx.inliner.inline_local_functions)",
            ) from None
        unused = bool(model.functions)
        model.functions.clear()
        renamed = common.NameFixPass()(model).modified
        restored = _restore_outputs(model, outputs)
        return ir.passes.PassResult(model, modified=named or inlined or renamed or unused or restored)

    def _require_bodies(self, model: ir.Model) -> None:
        for node in model.graph.all_nodes():
            if node.domain == "metagen" and node.op_identifier() not in model.functions:
                raise GraphError(
                    f"{describe_node(node)} has no function body in this model",
                    where=node.name,
                    fix="export it again, so that every custom op carries its body",
                )

    def ensures(self, model: ir.Model) -> None:
        if model.functions:
            raise ir.passes.PostconditionError(f"functions are left: {list(model.functions)}")


def _restore_outputs(model: ir.Model, names: list[str | None]) -> bool:
    """A body's output takes the body's name; the graph's interface must keep its own."""
    restored = False
    for index, (value, name) in enumerate(zip(list(model.graph.outputs), names, strict=True)):
        if value.name == name:
            continue
        restored = True
        if value.producer() is None or value.graph is not model.graph or value in model.graph.outputs[:index]:
            identity = ir.node("Identity", [value])
            identity.name = f"{name}/identity"
            model.graph.append(identity)
            identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
            model.graph.outputs[index] = value = identity.outputs[0]
        value.name = name
    return restored
