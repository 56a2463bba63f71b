"""Nodes for the plugins of a decode step: made in place of what they compute, and where they may stand.

    metagen.plugin::MetagenStepLinear      rms(x) W_i + b_i (+ residual), or act(rms(x) W_0) * (rms(x) W_1)
    metagen.plugin::MetagenStepAttention   rotate, write to the cache, attend: one token of each row

Both are made for few rows: what stands before the first axis of `x` is the batch of the decode step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from exporters.passes.keep_plugins import PLUGIN_DOMAIN, mark_plugin
from exporters.passes.shared.graph import Namer, is_onnx
from exporters.passes.shared.keep_float32 import KEEP_KEY

LINEAR, ATTENTION = "MetagenStepLinear", "MetagenStepAttention"
#: The kernels read the weights once for all rows, up to this many.
MAX_BATCH = 16


def make_plugin_node(
    op_type: str,
    inputs: Sequence[ir.Value],
    *,
    attributes: Mapping[str, int | float | str],
    outputs: Sequence[tuple[ir.Value, ir.Shape | None]],
    origin: ir.Node,
    namer: Namer,
) -> ir.Node:
    """A node that is in no graph yet, named after `origin`, with its metadata.

    Args:
        outputs: for each output the value whose type it has, and its own shape.
    """
    node = ir.node(
        op_type,
        inputs,
        attributes=attributes,
        domain=PLUGIN_DOMAIN,
        num_outputs=len(outputs),
        metadata_props=dict(origin.metadata_props),
    )
    node.name = namer(f"{origin.name or origin.op_type}/{op_type}")
    for index, (value, (like, shape)) in enumerate(zip(node.outputs, outputs, strict=True)):
        value.name = namer(f"{node.name}/out_{index}")
        value.type, value.shape = like.type, shape.copy() if shape is not None else None
    mark_plugin(node)
    return node


def is_kept(*nodes: ir.Node | None) -> bool:
    """Whether the model says of one of these nodes that it must stay float32."""
    return any(node is not None and KEEP_KEY in node.metadata_props for node in nodes)


def is_weight(value: ir.Value | None, rank: int) -> bool:
    """A float32 initializer that no caller can override."""
    return (
        value is not None
        and value.is_initializer()
        and not value.is_graph_input()
        and value.const_value is not None
        and value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) == rank
    )


def find_producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The standard operator behind `value`, if it is one of these."""
    node = value.producer() if value is not None else None
    return node if node is not None and is_onnx(node, *op_types) else None


def find_only_use(value: ir.Value) -> ir.Node | None:
    """The node of the same graph that alone reads `value`, once; None where anything else does, or it is a result."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


def list_dims(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """The sizes of a value, those that are not fixed by name; None where one is not known."""
    if value is None or value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return None if any(dim is None for dim in dims) else tuple(dim for dim in dims if dim is not None)


def have_few_rows(dims: tuple[int | str, ...], batches: Iterable[int | str]) -> bool:
    """Whether all axes but the last hold no more than the rows of the step: its batch, and otherwise 1.

    A size that is not fixed counts only under the very name of the step's batch, of which the largest is known.
    """
    first, *rest = dims[:-1]
    rows = first in set(batches) or (isinstance(first, int) and first <= MAX_BATCH)
    return rows and all(dim == 1 for dim in rest)
