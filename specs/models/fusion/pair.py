"""What joins the features of an image tower and a text tower.

Shape letters: B batch, C a tower's width, P projection size, M = 2 modalities (image, text, in this order).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components import FusionComponent


class Projections(nn.Module):
    """A Linear without bias for each tower."""

    def __init__(self, image_size: int, text_size: int, projection_size: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_size, projection_size, bias=False)
        self.text = nn.Linear(text_size, projection_size, bias=False)

    def forward(self, image_BC: Tensor, text_BC: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(image_BC), self.text(text_BC)


class LateFusion(nn.Module):
    """CLIP's head (Radford et al. 2021): unit embeddings, and exp(logit_scale) times their cosines.

    Row i, column j of `similarity` [B, B] compares image i with text j.
    """

    def __init__(self, config: FusionComponent, *, image_size: int, text_size: int) -> None:
        super().__init__()
        assert config.projection_size
        self.projection = Projections(image_size, text_size, config.projection_size)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def forward(self, image_BC: Tensor, text_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image_BP, text_BP = (functional.normalize(x, dim=-1) for x in self.projection(image_BC, text_BC))
        return image_BP, text_BP, self.logit_scale.exp() * image_BP @ text_BP.T


class SigmoidFusion(nn.Module):
    """SigLIP's head (Zhai et al. 2023): unit features, exp(logit_scale) times their cosines, and a bias.

    Row i, column j of `similarity` [B, B] compares image i with text j; its sigmoid is the probability that they match.
    """

    def __init__(self, config: FusionComponent, *, image_size: int, text_size: int) -> None:
        super().__init__()
        assert image_size == text_size, "the family has compared them"
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(()))

    def forward(self, image_BC: Tensor, text_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image_BC, text_BC = functional.normalize(image_BC, dim=-1), functional.normalize(text_BC, dim=-1)
        return image_BC, text_BC, self.logit_scale.exp() * image_BC @ text_BC.T + self.logit_bias


class GatedFusion(nn.Module):
    """A gated multimodal unit (Arevalo et al. 2017): per channel, a learned share of image and of text."""

    def __init__(self, config: FusionComponent, *, image_size: int, text_size: int) -> None:
        super().__init__()
        width = config.projection_size
        assert width
        self.projection = Projections(image_size, text_size, width)
        self.gate = nn.Linear(2 * width, width)

    def forward(self, image_BC: Tensor, text_BC: Tensor) -> Tensor:
        image_BP, text_BP = self.projection(image_BC, text_BC)
        return ops.gated_fusion(image_BP, text_BP, self.gate.weight, self.gate.bias)


class AttentionFusion(nn.Module):
    """Softmax weights over the modalities that are present; one that is missing has weight 0, all missing gives 0."""

    def __init__(self, config: FusionComponent, *, image_size: int, text_size: int) -> None:
        super().__init__()
        assert config.projection_size
        self.temperature = config.temperature
        self.projection = Projections(image_size, text_size, config.projection_size)
        self.query = nn.Parameter(torch.empty(config.projection_size))

    def forward(self, image_BC: Tensor, text_BC: Tensor, presence_BM: Tensor) -> tuple[Tensor, Tensor]:
        features_BMP = torch.stack(self.projection(image_BC, text_BC), dim=1)
        return ops.modality_fusion(features_BMP, self.query, presence_BM, temperature=self.temperature)


#: kind -> module
FUSIONS: dict[str, type[LateFusion | SigmoidFusion | GatedFusion | AttentionFusion]] = {
    "fusion.late": LateFusion,
    "fusion.sigmoid": SigmoidFusion,
    "fusion.gated": GatedFusion,
    "fusion.attention": AttentionFusion,
}
