"""Branches that sizes decide: the right one is taken, with the same numbers; what is not sure stays an If."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.onnx_models.known_branches import take_known_branches

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
X = np.arange(12, dtype=np.float32).reshape(2, 6)

# torch's squeeze of a dim that is 1 once a Pad, whose amounts are computed, has its say; one If in another
NESTED = f"""{HEAD} g (float[N, T] x) => (float[A] y)
    <int64 at = {{1}}, int64 one = {{1}}, int64[2] pads = {{0, 0}}, int64[1] axis = {{1}}, int64[1] twice = {{2}},
     int64[1] all = {{-1}}, int64[2] wide = {{2, 6}}, int64[2] none = {{0, 0}}> {{
        s = Shape(wide) z = ConstantOfShape(s) more = Cast<to = 7>(z) amounts = Concat<axis = 0>(pads, none)
        p = Pad(x, amounts) shape = Shape(p) n = Gather(shape, at) c = Equal(n, one)
        h = If (c) <then_branch = t () => (float[P] a) {{ a = Squeeze(p, axis) }},
                    else_branch = e () => (float[K, L] b) {{
            rank = Size(shape) two = Squeeze(twice) d = Equal(rank, two)
            b = If (d) <then_branch = tt () => (float[K, L] a) {{ a = Neg(p) }},
                        else_branch = ee () => (float[K, L] v) {{ v = Relu(p) }}> }}>
        y = Reshape(h, all)
    }}"""


def run(model: onnx.ModelProto | ir.Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, dict(feed))
    return outputs


def count_branches(model: ir.Model) -> int:
    return sum(node.op_type == "If" for node in model.graph.all_nodes())


def take(text: str, feed: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> ir.Model:
    """The model of `text` with its branches taken, which answers as before."""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(
        onnx.parser.parse_model(text)
    )  # values share their tensors' names with what they were read of
    take_known_branches(model, sizes)
    for before, after in zip(run(proto, feed), run(model, feed), strict=True):
        assert np.array_equal(before, after)
    assert [value.name for value in model.graph.outputs] == [value.name for value in proto.graph.output]
    return model


def test_a_branch_in_a_branch_comes_up_when_the_size_is_known() -> None:
    assert count_branches(take(NESTED, {"x": X}, {"T": 6})) == 0
    assert count_branches(take(NESTED, {"x": X[:, :1]}, {"T": 1})) == 0


def test_a_size_that_may_differ_decides_nothing() -> None:
    assert count_branches(take(NESTED, {"x": X}, {})) == 2
    assert count_branches(take(NESTED, {"x": X}, {"N": 2})) == 2


def test_a_mutant_that_takes_the_other_branch_is_seen() -> None:
    model = ir.from_proto(onnx.parser.parse_model(NESTED.replace("one = {1}", "one = {6}")))
    take_known_branches(model, {"T": 6})
    with pytest.raises(Exception, match="Squeeze"):
        run(model, {"x": X})


def test_what_a_file_says_of_its_inner_shapes_decides_nothing() -> None:
    proto = onnx.parser.parse_model(NESTED)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["N", 1]))
    model = ir.from_proto(proto)
    assert take_known_branches(model, {"T": 6}) == 2
    assert np.array_equal(run(model, {"x": X})[0], -X.reshape(-1))


def test_values_decide_at_run_time() -> None:
    text = f"""{HEAD} g (float[N] x, bool c) => (float[N] y) {{
        y = If (c) <then_branch = t () => (float[N] a) {{ a = Relu(x) }}, else_branch = e () => (float[N] b) {{
            b = Neg(x) }}> }}"""
    assert count_branches(take(text, {"x": X[0], "c": np.array(True)}, {"N": 6})) == 1


def test_names_weights_and_outputs_of_a_branch_are_its_own_no_more() -> None:
    """Both branches call their values alike, hold weights of one name, and the outputs are the graph's."""
    text = f"""{HEAD} g (float[2, 6] x) => (float[2, 6] y, float[2, 6] z, float[2, 6] v)
        <bool yes = {{1}}, bool no = {{0}}> {{
        y, z = If (yes) <
            then_branch = t () => (float[2, 6] q, float[2, 6] r) <float w = {{2}}> {{ q = Mul(x, w) r = Add(q, w) }},
            else_branch = e () => (float[2, 6] q, float[2, 6] r) <float w = {{3}}> {{ q = Mul(x, w) r = Add(q, w) }}>
        v = If (no) <
            then_branch = t2 () => (float[2, 6] q) <float w = {{2}}> {{ q = Mul(x, w) }},
            else_branch = e2 () => (float[2, 6] q) <float w = {{3}}> {{ q = Mul(x, w) }}>
    }}"""
    assert count_branches(take(text, {"x": X}, {})) == 0


def test_one_value_of_a_branch_may_be_several_outputs() -> None:
    text = f"""{HEAD} g (float[2, 6] x) => (float[2, 6] y, float[2, 6] z) <bool yes = {{1}}> {{
        y, z = If (yes) <then_branch = t () => (float[2, 6] q, float[2, 6] p) {{ q = Relu(x) p = Identity(q) }},
                         else_branch = e () => (float[2, 6] q, float[2, 6] p) {{ q = Neg(x) p = Identity(q) }}> }}"""
    assert count_branches(take(text, {"x": X}, {})) == 0
