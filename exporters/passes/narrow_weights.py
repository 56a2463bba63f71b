"""NarrowWeights: float16 for ONNX Runtime on CPUs: weights are stored in it, and everything is computed in float32.

    W f32  ->  W f16 (lazy), widened again

ONNX Runtime's CPU kernels multiply float16 in float32 between Casts, of every activation and in every run: a float16
graph is slower than a float32 one there, and rounds more. Here a weight is rounded once and widened once, when the
graph is loaded (`StoreNarrowWeights` writes the Cast, ONNX Runtime folds it). Files have the size of float16 and share
its pool.

What is stored in float16 or bfloat16 already stays so. Vectors (biases, norms) stay float32: they are small. So does
what a float16 graph keeps (`keep_float32`): spectra, and weights that do not fit into float16.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.passes.convert_to_float16 import narrow_lazily
from exporters.passes.shared.derived import find_stored, widen_lazily
from exporters.passes.shared.graph import is_onnx, list_graphs, notes_of, read_constant
from exporters.passes.shared.keep_float32 import LARGEST_FLOAT16, Reasons, find_kept, measure_magnitude

_HALF = ir.DataType.FLOAT16
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


class NarrowWeights(ir.passes.InPlacePass):
    """Fires on float32 initializers of two axes and more; needs types (InferTypes)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        notes = notes_of(model)
        count = 0
        for value, reason in find_narrow_weights(model):
            if reason:
                products = [use.node for use in value.uses() if is_onnx(use.node, *_PRODUCTS)]
                notes.keep_fp32.update({node.name or "": reason for node in products})
                continue
            name, tensor = value.name, value.const_value
            assert tensor is not None
            value.const_value = widen_lazily(narrow_lazily(tensor, _HALF, None))
            value.const_value.name = name
            count += 1
        notes.log.append(f"NarrowWeights: {count} weights are stored in float16")
        return ir.passes.PassResult(model, modified=bool(count))


def find_narrow_weights(model: ir.Model) -> Iterator[tuple[ir.Value, str]]:
    """Every float32 weight of two axes and more, and why it stays float32, or ""; those in Constants are lifted."""
    common.LiftConstantsToInitializersPass()(model)
    kept = find_kept(model, _HALF)
    for graph in list_graphs(model):
        for value in graph.initializers.values():
            tensor = read_constant(value)
            if _is_wide(tensor):
                assert tensor is not None
                yield value, _find_reason(value, tensor, [use.node for use in value.uses()], kept)


def _is_wide(tensor: ir.TensorProtocol | None) -> bool:
    return (
        tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and len(tensor.shape) >= 2
        and find_stored(tensor) is None
    )


def _find_reason(value: ir.Value, tensor: ir.TensorProtocol, users: list[ir.Node], kept: Reasons) -> str:
    """Why a weight stays float32, or ""."""
    reason = next((kept[node] for node in users if node in kept), "")
    if reason or value.is_graph_output():
        return reason or "it is an output of the graph"
    largest, _ = measure_magnitude(tensor)
    return f"constant '{value.name}' holds {largest:.3g}, float16 ends at 65504" if largest > LARGEST_FLOAT16 else ""
