"""BatchNorm into the convolution before it: exactly, once, and only where nothing else sees what lies between."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporters.passes import run_pipeline
from exporters.passes.fold_batch_norm import FoldBatchNorm
from exporters.passes.shared.graph import notes_of
from tests.passes_support import run

EPSILON = 3e-3


def make_model(
    conv: str = "Conv", *, bias: bool = False, groups: int = 1, extra: str = "", training: bool = False, seed: int = 0
) -> onnx.ModelProto:
    """x [batch, 6, 7, 5] -> conv to 4 channels -> batch norm -> y; `extra` is what makes a near miss of it."""
    random = np.random.default_rng(seed)
    shape = (4, 6 // groups, 3, 3) if conv == "Conv" else (6, 4 // groups, 3, 3)
    weights = {
        "weight": random.standard_normal(shape),
        "bias": random.standard_normal(4),
        "scale": random.standard_normal(4),
        "shift": random.standard_normal(4),
        "mean": 3 * random.standard_normal(4),
        "variance": random.uniform(1e-3, 9, 4),
    }
    given = ["x", "weight", *(["bias"] if bias else [])]
    nodes = [helper.make_node(conv, given, ["between"], name="conv", group=groups, pads=[1, 1, 1, 1])]
    if extra == "relu":
        nodes.append(helper.make_node("Relu", ["between"], ["relu"], name="relu"))
    before = "relu" if extra == "relu" else "between"
    norm = helper.make_node(
        "BatchNormalization", [before, "scale", "shift", "mean", "variance"], ["y"], name="norm", epsilon=EPSILON
    )
    if training:
        norm.attribute.append(helper.make_attribute("training_mode", 1))
        norm.output.extend(["new_mean", "new_variance"])
    nodes.append(norm)
    names = ["y", *(["between"] if extra == "read" else [])]
    inputs = [helper.make_tensor_value_info("x", 1, ["batch", 6, 7, 5])]
    stored = {name: value for name, value in weights.items() if bias or name != "bias"}
    if extra == "variable":
        inputs.append(helper.make_tensor_value_info("mean", 1, [4]))
        del stored["mean"]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    outputs = [helper.make_tensor_value_info(name, 1, ["batch", 4, 7, 5]) for name in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def fold(proto: onnx.ModelProto) -> tuple[ir.Model, list[str]]:
    model = ir.from_proto(proto)
    FoldBatchNorm()(model)
    return model, notes_of(model).log


def compute_exactly(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """y in float64 from the float32 constants: the convolution by onnx's reference, the norm by its formula."""
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    del wide.graph.node[1:], wide.graph.output[:]
    wide.graph.output.append(helper.make_tensor_value_info("between", 11, ["batch", 4, 7, 5]))
    wide.graph.input[0].type.tensor_type.elem_type = 11
    for tensor in wide.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    (between,) = ReferenceEvaluator(wide).run(None, {"x": x.astype(np.float64)})
    scale, shift, mean, variance = (values[n][:, None, None] for n in ("scale", "shift", "mean", "variance"))
    exact: np.ndarray = (between - mean) / np.sqrt(variance + np.float32(EPSILON)) * scale + shift
    return exact


CASES: list[tuple[str, dict[str, Any]]] = [
    ("Conv", {}),
    ("Conv", {"bias": True}),
    ("Conv", {"groups": 2}),
    ("ConvTranspose", {"bias": True}),
]


@pytest.mark.parametrize(("conv", "options"), CASES)
def test_fires_and_keeps_the_numbers(conv: str, options: dict[str, Any]) -> None:
    proto = make_model(conv, **options)
    model, log = fold(proto)
    assert [node.op_type for node in model.graph] == [conv]
    assert log == ["FoldBatchNorm: 1 nodes went into the convolution before them"]
    assert len(model.graph.initializers) == 2, "what was folded is not kept"
    x = np.random.default_rng(1).standard_normal((3, 6, 7, 5)).astype(np.float32)
    exact = compute_exactly(proto, x)
    before, after = (run(one, {"x": x})[0] for one in (ir.from_proto(proto), model))
    floor = np.abs(before - exact).max()
    assert np.abs(after - exact).max() <= 2 * floor


def test_the_product_is_rounded_once() -> None:
    """In float32, factor and product would each be rounded: up to 1.5 units more."""
    proto = make_model(bias=True)
    model, _ = fold(proto)
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    factor = values["scale"] / np.sqrt(values["variance"] + np.float32(EPSILON))
    weight, bias = (model.graph.initializers[name].const_value for name in list(model.graph.initializers))
    assert weight is not None and bias is not None
    assert np.array_equal(weight.numpy(), (values["weight"] * factor[:, None, None, None]).astype(np.float32))
    wanted = (values["bias"] - values["mean"]) * factor + values["shift"]
    assert np.array_equal(bias.numpy(), wanted.astype(np.float32))


NEAR_MISSES: dict[str, dict[str, Any]] = {
    "something else reads the convolution": {"extra": "read"},
    "there is no convolution before it": {"extra": "relu"},
    "its statistics are not constant": {"extra": "variable"},
    "it is in training mode": {"training": True},
    "the transposed convolution has groups": {"conv": "ConvTranspose", "groups": 2},
}


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_near_misses_stay(reason: str) -> None:
    proto = make_model(**NEAR_MISSES[reason])
    model, log = fold(proto)
    assert "BatchNormalization" in [node.op_type for node in model.graph]
    assert log == [f"FoldBatchNorm: BatchNormalization 'norm' stays: {reason}"]


@pytest.mark.parametrize("mutant", ["scale", "shift", "mean", "variance"])
def test_a_lost_part_would_show(mutant: str) -> None:
    """The comparison above is fine enough for one statistic that is off by a thousandth."""
    proto = make_model(bias=True)
    x = np.random.default_rng(1).standard_normal((3, 6, 7, 5)).astype(np.float32)
    exact = compute_exactly(proto, x)
    floor = np.abs(run(ir.from_proto(proto), {"x": x})[0] - exact).max()
    tensor = next(t for t in proto.graph.initializer if t.name == mutant)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), mutant))
    model, _ = fold(proto)
    assert np.abs(run(model, {"x": x})[0] - exact).max() > 2 * floor


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"])
def test_every_pipeline_folds(lowering: str) -> None:
    typed = run_pipeline(ir.from_proto(make_model()), lowering=lowering, precision="fp32").model
    assert [node.op_type for node in typed.graph] == ["Conv"]


def test_two_norms_of_one_weight() -> None:
    """A weight that two convolutions share gives two folded weights, each with its own norm's scale."""
    proto = make_model()
    second = onnx.NodeProto()
    second.CopyFrom(proto.graph.node[0])
    second.name, second.output[0] = "conv2", "between2"
    norm = helper.make_node(
        "BatchNormalization", ["between2", "shift", "scale", "mean", "variance"], ["z"], name="norm2"
    )
    proto.graph.node.extend([second, norm])
    proto.graph.output.append(helper.make_tensor_value_info("z", 1, ["batch", 4, 7, 5]))
    model, _ = fold(proto)
    x = np.random.default_rng(1).standard_normal((2, 6, 7, 5)).astype(np.float32)
    for before, after in zip(run(ir.from_proto(proto), {"x": x}), run(model, {"x": x}), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6 * np.abs(before).max())
