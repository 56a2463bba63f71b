"""MultiplyPatches: a patch embedding becomes a product with the same numbers; other convolutions stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes import run_pipeline
from exporters.passes.infer_types import InferTypes
from exporters.passes.multiply_patches import MultiplyPatches
from exporters.passes.shared.graph import notes_of
from tests.passes_support import count_ops, differ, parse, random, run

GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,3,{height},{width}] x) => (float[B,a,b] y) {{
    image = Conv <{attributes}> (x, w{bias})
    shape = Constant <value = int64[3] {{0, 5, -1}}> ()
    flat = Reshape (image, shape)
    y = Transpose <perm = [{perm}]> (flat)
}}
"""
PATCHES = "kernel_shape = [4, 2], strides = [4, 2]"


def make(
    *, height: int = 8, width: int = 6, attributes: str = PATCHES, bias: bool = True, perm: str = "0, 2, 1",
    weight: tuple[int, ...] = (5, 3, 4, 2),
) -> tuple[ir.Model, dict[str, np.ndarray]]:  # fmt: skip
    text = GRAPH.format(height=height, width=width, attributes=attributes, bias=", b" if bias else "", perm=perm)
    model = parse(text, {"w": random(*weight), **({"b": random(5, seed=1)} if bias else {})})
    InferTypes()(model)
    return model, {"x": random(2, 3, height, width, seed=2)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attributes", [PATCHES, f'{PATCHES}, auto_pad = "VALID", group = 1'])
def test_a_patch_embedding_becomes_a_product(attributes: str, bias: bool) -> None:
    model, feed = make(attributes=attributes, bias=bias)
    before = run(model, feed)
    assert MultiplyPatches()(model).modified
    assert "Conv" not in count_ops(model) and count_ops(model)["MatMul"] == 1
    assert differ(before, run(model, feed)) < 1e-6
    assert model.graph.outputs[0].name == "y"
    assert notes_of(model).log == ["MultiplyPatches: 1 convolutions became products"]


@pytest.mark.parametrize(
    "words",
    [
        {"attributes": "kernel_shape = [4, 2], strides = [2, 2]"},  # patches overlap
        {"attributes": f"{PATCHES}, pads = [0, 0, 0, 2]"},
        {"attributes": f"{PATCHES}, dilations = [1, 2]"},
        {"attributes": f'{PATCHES}, auto_pad = "SAME_UPPER"'},
        {"height": 9},  # the last row is cut off
        {"attributes": "kernel_shape = [1, 1]", "weight": (5, 3, 1, 1)},
    ],
)
def test_other_convolutions_stay(words: dict[str, object]) -> None:
    model, _ = make(**words)  # type: ignore[arg-type]
    assert not MultiplyPatches()(model).modified and not notes_of(model).log


def test_a_result_that_stays_an_image_is_said() -> None:
    model, _ = make(perm="0, 1, 2")
    assert not MultiplyPatches()(model).modified
    assert notes_of(model).log[0].endswith("stays: its result is used as an image")


def test_a_patch_that_is_read_in_the_wrong_order_is_found_out() -> None:
    """The mutant: rows and columns of a patch swapped."""
    model, feed = make(attributes="kernel_shape = [2, 2], strides = [2, 2]", weight=(5, 3, 2, 2))
    before = run(model, feed)
    MultiplyPatches()(model)
    (cut,) = [n for n in model.graph if n.op_type == "Transpose" and len(n.attributes["perm"].as_ints()) == 6]
    cut.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 4, 1, 5, 3])
    assert differ(before, run(model, feed)) > 0.1


@pytest.mark.parametrize(
    ("lowering", "multiplied"), [("tensorrt-8", True), ("tensorrt-10", False), ("onnxruntime", False)]
)
def test_only_tensorrt_8_multiplies(lowering: str, multiplied: bool) -> None:
    model, feed = make()
    lowered = run_pipeline(model, lowering=lowering, precision="fp32").model
    assert ("Conv" in count_ops(lowered)) != multiplied
    assert differ(run(model, feed), run(lowered, feed)) < 1e-6
