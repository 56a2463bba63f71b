"""What precision a TensorRT network really computes in, read from the compiler's own network after parsing.

With strong typing the engine keeps these types, so a graph that asked for fp16 and parsed to fp32 shows here.
Layers are weighted by multiply-accumulates: prod(output) * reduced size for a matrix product, prod(output) *
prod(weights of one filter) for a convolution, 2 * B H T S D for attention. A dimension that is only known at run time
counts as `unknown_size`. Works on any object with TensorRT's `INetworkDefinition` shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_NAMES = {
    "FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4", "FP4": "fp4",
}  # fmt: skip
_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5, "fp4": 0.5}
#: Layers that only move values, looked through when asking where a tensor comes from.
_MOVES = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE", "SLICE")
#: Layers that neither compute nor hold anything, left out of the share by nodes.
_SILENT = (*_MOVES, "CAST", "QUANTIZE", "DEQUANTIZE", "CONSTANT", "SHAPE", "ASSERTION")


def measure_network(trt: Any, network: Any, unknown_size: int) -> dict[str, dict[str, float]]:
    """Shares of each precision, as {"nodes", "weight_bytes", "compute"} -> precision -> fraction of 1."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {layer.get_output(j).name: layer for layer in layers for j in range(layer.num_outputs)}
    nodes: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    compute: dict[str, float] = defaultdict(float)
    for layer in layers:
        kind = layer.type.name
        precision = _read_precision(layer, producers)
        if kind == "CONSTANT" and precision:
            weights[precision] += _BYTES[precision] * _volume(layer.get_output(0).shape, unknown_size)
        if kind not in _SILENT and precision:
            nodes[precision] += 1
        macs = _count_macs(trt, layer, kind, unknown_size)
        if macs and precision:
            compute[precision] += macs
        if kind in ("CONVOLUTION", "DECONVOLUTION") and layer.num_inputs == 1 and precision:
            shape = tuple(layer.get_output(0).shape)
            pixels = _volume((shape[0], *shape[2:]), unknown_size)  # B and the spatial sizes: what weights repeat over
            weights[precision] += _BYTES[precision] * macs / max(pixels, 1)
    return {"nodes": _normalise(nodes), "weight_bytes": _normalise(weights), "compute": _normalise(compute)}


def _normalise(amounts: dict[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: value / total for name, value in sorted(amounts.items())} if total else {}


def _volume(shape: Iterable[int], unknown_size: int) -> float:
    volume = 1.0
    for size in shape:
        volume *= size if size >= 0 else unknown_size
    return volume


def _read_precision(layer: Any, producers: dict[str, Any]) -> str:
    """int8 and the like when every operand comes out of a DequantizeLinear, else the type of the result."""
    if layer.type.name in ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION"):
        stored = {_read_stored(layer.get_input(i), producers) for i in range(min(layer.num_inputs, 2))}
        if len(stored) == 1 and "" not in stored:
            return str(stored.pop())
    result = layer.get_output(0)  # None of a layer that only closes a loop
    return _NAMES.get(result.dtype.name, "") if result is not None else ""


def _read_stored(tensor: Any, producers: dict[str, Any]) -> str:
    """The quantised type a tensor was dequantised from, "" when it was not."""
    for _ in range(8):
        layer = producers.get(tensor.name) if tensor is not None else None
        if layer is None:
            return ""
        if layer.type.name == "DEQUANTIZE":
            return _NAMES.get(layer.get_input(0).dtype.name, "")
        if layer.type.name not in _MOVES:
            return ""
        tensor = layer.get_input(0)
    return ""


def _count_macs(trt: Any, layer: Any, kind: str, unknown_size: int) -> float:
    if kind == "MATRIX_MULTIPLY":
        layer.__class__ = trt.IMatrixMultiplyLayer
        shape = tuple(layer.get_input(0).shape)
        if not shape:
            return 0.0
        reduced = shape[-2] if layer.op0 == trt.MatrixOperation.TRANSPOSE and len(shape) > 1 else shape[-1]
        return _volume(layer.get_output(0).shape, unknown_size) * _volume((reduced,), unknown_size)
    if kind in ("CONVOLUTION", "DECONVOLUTION"):
        layer.__class__ = trt.IConvolutionLayer if kind == "CONVOLUTION" else trt.IDeconvolutionLayer
        data = layer.get_input(0) if kind == "CONVOLUTION" else layer.get_output(0)
        channels = _volume((tuple(data.shape)[1],), unknown_size) / max(int(layer.num_groups), 1)
        pixels = layer.get_output(0) if kind == "CONVOLUTION" else layer.get_input(0)
        return _volume(pixels.shape, unknown_size) * channels * _volume(layer.kernel_size_nd, unknown_size)
    if kind == "ATTENTION_INPUT":
        query, key = tuple(layer.get_input(0).shape), tuple(layer.get_input(1).shape)
        return 2 * _volume(query, unknown_size) * _volume(key[-2:-1], unknown_size)
    return 0.0
