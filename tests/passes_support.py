"""Small graphs written as ONNX text, and the two ways a pass test looks at them: their numbers and their operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from exporters.ops import attach_bodies


def parse(text: str, weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """A model from onnx's text form; `weights` become initializers, custom ops get their bodies."""
    proto = onnx.parser.parse_model(text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    attach_bodies(model)
    return model


def run(model: ir.Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime computes, unoptimised, so that the graph is judged and not its rewriting."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[np.ndarray] = session.run(None, dict(feed))
    return results


def count_ops(model: ir.Model) -> Counter[str]:
    """Operator types of the main graph."""
    return Counter(node.op_type for node in model.graph)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Seeded normal float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def differ(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """The largest difference, relative to the root mean square of `left`."""
    return max(
        float(np.abs(a - b).max() / max(np.sqrt(np.mean(np.square(a, dtype=np.float64))), 1e-12))
        for a, b in zip(left, right, strict=True)
    )
