"""KeepPlugins: what a plugin runs loses its body and says by which attributes TensorRT finds it; the rest stays."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from exporters.passes.keep_plugins import PLUGIN_DOMAIN, KeepPlugins, has_plugin_ops, is_plugin
from exporters.passes.shared.graph import notes_of
from tests.passes_support import parse

TEXT = """<ir_version: 10, opset_import: ["": 20, "metagen": 1]>
g (float[1,2,3,4,5] x, float[1,3,4,5,3] p, float[2,8] a) => (float[1,2,3,4,5] y, float[1,2,3,4,5] z, float[2,8] b) {
    y = metagen.MetagenGridSample3D <mode = "bilinear", padding_mode = "zeros", align_corners = 0> (x, p)
    z = metagen.MetagenGridSample3D <mode = "bilinear", padding_mode = "zeros", align_corners = 0> (y, p)
    b = Relu (a)
}"""


def test_every_node_of_a_plugin_says_whose_it_is() -> None:
    model = parse(TEXT)
    assert has_plugin_ops(model)
    assert KeepPlugins()(model).modified
    kept = [node for node in model.graph if is_plugin(node)]
    assert [node.op_type for node in kept] == ["MetagenGridSample3D"] * 2
    for node in kept:
        assert (node.domain, node.overload) == ("metagen.plugin", "")
        assert node.attributes["plugin_version"].as_string() == "1"
        assert node.attributes["plugin_namespace"].as_string() == "metagen.plugin"
    assert model.opset_imports[PLUGIN_DOMAIN] == 1
    assert notes_of(model).log == ["KeepPlugins: 2 nodes MetagenGridSample3D are left to a plugin"]
    assert [node.domain for node in model.graph if node.op_type == "Relu"] == [""]
    assert not has_plugin_ops(model) and not KeepPlugins()(model).modified


@pytest.mark.parametrize("name", ["Relu", "metagen.MetagenGatedFusion"])
def test_a_graph_without_such_nodes_stays_as_it_is(name: str) -> None:
    inputs = "a" if name == "Relu" else "a, a, w, v"
    model = parse(
        f"""<ir_version: 10, opset_import: ["": 20, "metagen": 1]>
        g (float[2,8] a, float[8,16] w, float[8] v) => (float[2,8] b) {{ b = {name} ({inputs}) }}"""
    )
    assert not has_plugin_ops(model) and not KeepPlugins()(model).modified
    assert PLUGIN_DOMAIN not in model.opset_imports and notes_of(model).log == []


def test_a_result_without_a_type_has_that_of_the_first_input() -> None:
    model = parse(TEXT)
    first = next(node for node in model.graph if node.op_type == "MetagenGridSample3D")
    first.outputs[0].type = None
    KeepPlugins()(model)
    assert first.outputs[0].type == ir.TensorType(ir.DataType.FLOAT)
