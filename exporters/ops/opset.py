"""The opsets that translations trace their nodes with."""

from __future__ import annotations

import onnxscript

from exporters.ops.base import DOMAIN, DOMAIN_VERSION


def metagen_opset() -> onnxscript.values.Opset:
    """Works inside `registered_schemas()`: the opset takes an op's inputs and attributes from onnx's registry."""
    return onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)


def standard_opset() -> onnxscript.values.Opset:
    """ONNX's own operators, at the opset in which torch's translations are written."""
    return onnxscript.opset18
