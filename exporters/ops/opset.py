"""The opset that torch's exporter traces custom nodes with."""

from __future__ import annotations

import onnxscript

from exporters.ops.base import DOMAIN, DOMAIN_VERSION


def metagen_opset() -> onnxscript.values.Opset:
    """Needs `register_schemas()` first: the opset takes an op's inputs and attributes from onnx's registry."""
    return onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)
