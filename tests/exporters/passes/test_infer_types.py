"""InferTypes: types and sizes that a file leaves out."""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.infer_types import InferTypes
from tests.passes_support import parse

# Sizes that are computed: what onnx knows of them it knows from the values of `s`, not from their type.
COMPUTED = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,4,6] x) => (float z) {
    s = Shape <start = 1> (x)
    n = ReduceProd <keepdims = 1> (s)
    one = Constant <value = int64[1] {-1}> ()
    c = Concat <axis = 0> (one, s)
    y = Reshape (x, c)
    z = ReduceSum <keepdims = 0> (y)
}
"""


def test_sizes_that_are_computed_of_known_ones_are_known() -> None:
    model = parse(COMPUTED)
    assert InferTypes()(model).modified
    shapes = {value.name: value.shape for node in model.graph for value in node.outputs}
    assert shapes["y"] is not None
    assert tuple(shapes["y"])[1:] == (4, 6)
    assert {node.outputs[0].dtype for node in model.graph if node.op_type == "Shape"} == {ir.DataType.INT64}
    assert not InferTypes()(model).modified
