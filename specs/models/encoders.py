"""Encoders as a fusion needs them: tokens [B, T, C], and their number where it varies from row to row.

ENCODERS has the module of every kind that is an `EncoderComponent`; `register_encoder` adds a user's own. Towers that
other families share are wrapped here, so that their parameters keep their names.

Shape letters: B batch, T tokens, C channels, D width of the tokens, H and W a raw picture's size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from specs.models.clip_text import ClipText
from specs.models.frames import FramesEncoder
from specs.models.media_text import PatchFeatures
from specs.models.raw_pixels import take_pixels
from specs.models.sensor import PointsEncoder, SeriesEncoder
from specs.models.vision import VisionTransformer

#: kind -> module, built from the component; its inputs are `list_inputs`, its output tokens [B, T, D].
ENCODERS: dict[str, Any] = {
    "video.frames": FramesEncoder,
    "sensor.points": PointsEncoder,
    "sensor.series": SeriesEncoder,
}


class ImageToken(nn.Module):
    """image [B, C, h, w] in [0, 1] -> one pooled embedding, [B, 1, D]."""

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, image_BCHW: Tensor) -> Tensor:
        pooled_BD: Tensor = self.tower(image_BCHW)
        return pooled_BD[:, None]


class TextTokens(nn.Module):
    """token ids [B, T] -> one projected embedding [B, 1, D]; without a projection, [B, T, D] and lengths [B]."""

    def __init__(self, tower: ClipText) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, token_ids_BT: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.tower.projection is not None:
            pooled_BD: Tensor = self.tower(token_ids_BT)
            return pooled_BD[:, None]
        features_BTD = self.tower.output_norm(self.tower.forward_features(token_ids_BT))
        return features_BTD, self.tower.find_end(token_ids_BT) + 1


def wrap_tower(component: nn.Module) -> nn.Module:
    """The graph of an encoder: of a tower that other families have too, or of one that is made for fusion."""
    if isinstance(component, VisionTransformer):
        pooled = component.config.resolved_pooling != "none"
        tokens = ImageToken(component) if pooled else PatchFeatures(component)
        return take_pixels(tokens, component.config)
    return TextTokens(component) if isinstance(component, ClipText) else component
