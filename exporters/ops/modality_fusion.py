"""MetagenModalityFusion: an attention-weighted sum over the modalities that are present, the body in standard ONNX.

`scale` is 1 / (sqrt(C) temperature), written on the node because a body cannot see static shapes.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from exporters.ops.base import MASKED, Attributes, Body, CustomOp
from exporters.ops.opset import metagen_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(features: Any, query: Any, presence: Any, temperature: float) -> Any:
    """weights = softmax over present m of scale <features_m, query>; fused = sum of weights_m features_m."""
    scale = features.shape[-1] ** -0.5 / temperature
    return metagen_opset().MetagenModalityFusion(features, query, presence, scale=scale)


def _build_body(body: Body, inputs: list[ir.Value | None], attributes: Attributes) -> list[ir.Value]:
    features_BMC, query_C, presence_BM = inputs
    assert features_BMC is not None and query_C is not None and presence_BM is not None
    query_C1 = body("Unsqueeze", query_C, body.constant([1]))
    dots_BM = body("Squeeze", body("MatMul", features_BMC, query_C1), body.constant([2]))
    scores_BM = body("Mul", dots_BM, body.constant(float(attributes["scale"])))
    masked_BM = body("Where", presence_BM, scores_BM, body.constant(MASKED))
    # a row in which nothing is present would otherwise share its weight out evenly
    present_BM = body("Where", presence_BM, body.constant(1.0), body.constant(0.0))
    weights_BM = body("Mul", body("Softmax", masked_BM, axis=-1), present_BM)
    weights_B1M = body("Unsqueeze", weights_BM, body.constant([1]))
    fused_BC = body("Squeeze", body("MatMul", weights_B1M, features_BMC), body.constant([1]))
    return [fused_BC, weights_BM]


MODALITY_FUSION = CustomOp(
    name="MetagenModalityFusion",
    torch_op=torch.ops.metagen.modality_fusion.default,
    inputs={"features": "T", "query": "T", "presence": "B"},
    outputs=("fused", "weights"),
    attributes={"scale": ir.AttributeType.FLOAT},
    translate=_translate,
    build_body=_build_body,
)
