"""What exported weights hang on stays float32 in a half graph, and nothing else does for their sake."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from exporters.lower import lower
from exporters.passes import run_pipeline, share_beginnings
from exporters.trace import choose_sizes, trace
from specs.handlers import get_handler
from tests.families.fusion_support import STRATEGIES, build_graph, make_spec

REASON = "its scores are exported as weights"


def list_types(strategy: str, options: str, folder: Path) -> tuple[set[str], set[str], int]:
    """The types that Softmax and weighted products compute in, and how many nodes stay float32 for the weights."""
    spec = make_spec(strategy, options)
    graph = build_graph(spec, "fusion")
    sizes = choose_sizes(spec.dims, near=3)
    program = trace(graph, spec.dims, get_handler(spec).make_inputs(spec, graph, sizes=sizes, seed=0))
    path = folder / "fusion.onnx"
    ir.save(lower(program, graph), path)
    begun = share_beginnings(ir.load(path), [("tensorrt-10", "fp16")])
    result = run_pipeline(begun, lowering="tensorrt-10", precision="fp16", ranges=None, decided={})
    found: dict[str, set[str]] = {"Softmax": set(), "Product": set()}
    for node in result.model.graph:
        weighted = node.op_type in ("MatMul", "Gemm") and any(
            one is not None and one.is_initializer() for one in node.inputs
        )
        kind = "Product" if weighted else node.op_type
        if kind in found and node.outputs[0].dtype is not None:
            found[kind].add(node.outputs[0].dtype.name)
    return found["Softmax"], found["Product"], sum(REASON in entry for entry in result.keep_fp32)


@pytest.mark.parametrize("strategy", ["early", "middle"])
def test_scores_stay_float32_and_products_half(strategy: str, tmp_path: Path) -> None:
    softmaxes, products, kept = list_types(strategy, STRATEGIES[strategy], tmp_path)
    assert softmaxes == {"FLOAT"}
    assert products == {"FLOAT", "FLOAT16"}, "projections, and the layers' own"
    assert kept > 0


def test_a_fusion_without_weights_is_half_throughout(tmp_path: Path) -> None:
    options = STRATEGIES["middle"].replace(", export_weights: true", "")
    softmaxes, products, kept = list_types("middle", options, tmp_path)
    assert (softmaxes, products, kept) == ({"FLOAT16"}, {"FLOAT16"}, 0)
