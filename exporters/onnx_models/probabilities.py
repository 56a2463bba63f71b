"""Which outputs of a graph are probabilities one by one: what a Sigmoid gives, moved around or multiplied.

    logits --Sigmoid--> p --Reshape, Concat, If, ...--> output          scale 1, whatever the input
    p q                                                                 likewise

A detector that sees nothing answers 1e-6. Errors are judged by the size of the answer, of a probability by its
logit (`specs.tolerance`). What can leave [0, 1] (boxes beside scores in one tensor, a logarithm) is none, and a Softmax
is none either: its answers add up to 1, so that they have a size.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.graph import is_onnx

_BOUNDED = ("Sigmoid", "HardSigmoid")
_MOVING = (
    "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalAveragePool", "GlobalMaxPool",
    "Identity", "Max", "MaxPool", "Min", "Mul", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
)  # fmt: skip
_OF_ALL_INPUTS = ("Concat", "Max", "Min", "Mul")


def list_probabilities(model: ir.Model) -> tuple[str, ...]:
    """The names of the outputs that are in [0, 1] by what makes them."""
    return tuple(value.name or "" for value in model.graph.outputs if _is_bounded(value))


def _is_bounded(value: ir.Value) -> bool:
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        node = one.producer()
        if one in seen:
            continue
        seen.add(one)
        if node is None:
            return False
        if is_onnx(node, "If"):
            index = node.outputs.index(one)
            waiting += [node.attributes[name].as_graph().outputs[index] for name in ("then_branch", "else_branch")]
        elif is_onnx(node, *_MOVING):
            inputs = node.inputs if node.op_type in _OF_ALL_INPUTS else node.inputs[:1]
            if None in inputs or (node.op_type == "TopK" and one is not node.outputs[0]):
                return False
            waiting += [each for each in inputs if each is not None]
        elif not is_onnx(node, *_BOUNDED):
            return False
    return True
