"""What several pipelines begin with alike is done once: one graph lowered to fp16 and to int8, for one target or more.

    fp16   a b c d | e            model --a b c d--> kept --copy--> e
    int8   a b c d | f g                             kept --copy--> f g

Two pipelines begin alike as far as their passes are the same objects. A copy costs a tenth of what inlining and
inferring types do; weights are not copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import onnx_ir as ir

from exporters.passes.infer_types import InferTypes
from exporters.passes.shared.graph import copy_notes, is_onnx, list_graphs
from specs.errors import MetagenError

Pipeline = tuple[ir.passes.PassBase, ...]


@final
class Beginnings:
    """Copies of one model after the passes that two or more of `pipelines` begin with.

    Args:
        model: stays as it is.
        pipelines: those that will be asked for; any other is right too, and shares what it can.
    """

    def __init__(self, model: ir.Model, pipelines: Sequence[Pipeline] = ()) -> None:
        self.cuts = {
            _find_beginning(one, other)
            for index, one in enumerate(pipelines)
            for other in pipelines[:index]
            if one != other
        }
        self.model = model
        self.kept: dict[Pipeline, ir.Model] = {(): model}

    def start(self, passes: Pipeline) -> tuple[ir.Model, Pipeline]:
        """A copy of the model after some of `passes`, and those that were run on it."""
        cut = _find_longest(self.cuts, passes)
        if cut not in self.kept:
            before = _find_longest(self.kept, cut)
            model = _copy(self.kept[before])
            run_passes(model, cut, done=before)
            self.kept[cut] = model
        return _copy(self.kept[cut]), cut


def run_passes(model: ir.Model, passes: Pipeline, *, done: Pipeline = ()) -> None:
    """Run passes in place, without the first of them, which are `done`. Types are inferred where something changed.

    Raises:
        MetagenError: what a pass says that cannot take the graph.
    """
    inferred = bool(done) and isinstance(done[-1], InferTypes)
    for step in passes[len(done) :]:
        if inferred and isinstance(step, InferTypes):
            continue
        try:
            modified = step(model).modified
        except ir.passes.PreconditionError as error:
            if isinstance(error.__cause__, MetagenError):
                raise error.__cause__ from None
            raise
        inferred = isinstance(step, InferTypes) or (inferred and not modified)


def _find_longest(beginnings: Iterable[Pipeline], passes: Pipeline) -> Pipeline:
    return max((one for one in beginnings if passes[: len(one)] == one), key=len, default=())


def _find_beginning(one: Pipeline, other: Pipeline) -> Pipeline:
    count = next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a is not b), None)
    return one[: min(len(one), len(other)) if count is None else count]


def _copy(model: ir.Model) -> ir.Model:
    copy = model.clone()
    copy.meta.clear()
    copy_notes(model, copy)
    for graph in (*list_graphs(copy), *copy.functions.values()):
        for node in graph:
            if is_onnx(node, "Constant") and "value" in node.attributes:
                _own_constant(node)
    return copy


def _own_constant(node: ir.Node) -> None:
    """A tensor object of its own, over the same values: passes rename the tensors of Constants in place."""
    attribute = node.attributes["value"]
    if attribute.is_ref():
        return
    tensor = attribute.as_tensor()
    if tensor.dtype != ir.DataType.STRING:
        own = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
        node.attributes["value"] = ir.AttrTensor("value", own)
