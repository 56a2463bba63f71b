"""The table of custom ops, and what the exporter does with it. One op a file; `base.py` says what an op is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from exporters.ops.ada_layer_norm import ADA_LAYER_NORM
from exporters.ops.attention import ATTENTION
from exporters.ops.base import DOMAIN, DOMAIN_VERSION, CustomOp, build_function, make_schema, spell_overload
from exporters.ops.cached_attention import CACHED_ATTENTION
from exporters.ops.gated_fusion import GATED_FUSION
from exporters.ops.gated_linear import GATED_LINEAR
from exporters.ops.grid_sample_3d import GRID_SAMPLE_3D
from exporters.ops.group_norm_silu import GROUP_NORM_SILU
from exporters.ops.modality_fusion import MODALITY_FUSION

CUSTOM_OPS: dict[str, CustomOp] = {
    op.name: op
    for op in (
        ATTENTION,
        CACHED_ATTENTION,
        GATED_LINEAR,
        GATED_FUSION,
        MODALITY_FUSION,
        ADA_LAYER_NORM,
        GROUP_NORM_SILU,
        GRID_SAMPLE_3D,
    )
}


@contextlib.contextmanager
def registered_schemas() -> Iterator[None]:
    """Inside, onnx knows the custom ops' schemas: tracing looks them up in its registry.

    They do not stay: the registry is the process's, and a schema there would hide a function body from onnx's shape
    inference and make its checker judge other people's nodes of the same name.
    """
    schemas = [make_schema(op) for op in CUSTOM_OPS.values()]
    for schema in schemas:
        onnx.defs.register_schema(schema)
    try:
        yield
    finally:
        for schema in schemas:
            onnx.defs.deregister_schema(schema.name, schema.since_version, schema.domain)


def attach_bodies(model: ir.Model) -> tuple[str, ...]:
    """Give every custom node its body and overload. Returns the custom op types that the model uses, sorted."""
    used = set()
    opset = model.opset_imports[""]
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        op = CUSTOM_OPS[node.op_type]
        used.add(op.name)
        node.overload = spell_overload(op, node)
        if node.op_identifier() not in model.functions:
            model.functions[node.op_identifier()] = build_function(op, node, opset=opset)
    if used:
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return tuple(sorted(used))
