"""Attention over the modalities that are present: the eager meaning, the fake-tensor rule and the wrapper."""

from __future__ import annotations

import torch
from torch import Tensor

from specs.ops._plain import is_opened


def _compute_modality_fusion(
    features_BMC: Tensor, query_C: Tensor, presence_BM: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    scores_BM = (features_BMC @ query_C) * (features_BMC.shape[-1] ** -0.5 / temperature)
    weights_BM = scores_BM.masked_fill(~presence_BM, torch.finfo(scores_BM.dtype).min).softmax(-1)
    # a row in which nothing is present would otherwise share its weight out evenly
    weights_BM = weights_BM * presence_BM.to(weights_BM.dtype)
    return (weights_BM[:, :, None] * features_BMC).sum(1), weights_BM


@torch.library.custom_op("metagen::modality_fusion", _compute_modality_fusion, mutates_args=()).register_fake
def _modality_fusion_fake(
    features_BMC: Tensor, query_C: Tensor, presence_BM: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    batch, modalities, channels = features_BMC.shape
    return features_BMC.new_empty((batch, channels)), features_BMC.new_empty((batch, modalities))


def modality_fusion(
    features_BMC: Tensor, query_C: Tensor, presence_BM: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Attention-weighted sum over the modalities that are present.

    weights = softmax over present m of <features_m, query> / (sqrt(C) temperature). A missing modality has weight
    zero whatever its features hold (as long as they are finite); a row with nothing present gives zeros, never NaN.

    Returns:
        fused [B, C] and weights [B, M].
    """
    run = _compute_modality_fusion if is_opened() else torch.ops.metagen.modality_fusion
    fused, weights = run(features_BMC, query_C, presence_BM, temperature)
    return fused, weights
