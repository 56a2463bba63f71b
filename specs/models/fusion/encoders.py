"""Encoders as a fusion needs them: tokens [B, T, C], and their number where it varies from row to row.

ENCODERS has the module of every kind that is an `EncoderComponent`; `register_encoder` adds a user's own. Towers that
other families share are wrapped here, so that their parameters keep their names.

Shape letters: B batch, T tokens, C channels, D width of the tokens, H and W a raw picture's size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from specs.models.audio.wav2vec2 import Wav2Vec2
from specs.models.fusion.media_text import PatchFeatures
from specs.models.sensor import PointsEncoder, SeriesEncoder
from specs.models.text.bert import Bert
from specs.models.text.clip import ClipText
from specs.models.video.frames import FramesEncoder
from specs.models.vision.mobilevit import MobileVit
from specs.models.vision.raw_pixels import take_pixels
from specs.models.vision.resnet import ResNet
from specs.models.vision.vit import VisionTransformer

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


class MapTokens(nn.Module):
    """image [B, C, h, w] in [0, 1] -> a token for each place of a convolutional tower's last feature map, [B, T, D]."""

    def __init__(self, tower: ResNet | MobileVit) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, image_BCHW: Tensor) -> Tensor:
        _, map_BDHW = self.tower(image_BCHW)
        tokens_BTD: Tensor = map_BDHW.flatten(2).transpose(1, 2)
        return tokens_BTD


class BertTokens(nn.Module):
    """token ids [B, T], lengths [B] -> one embedding [B, 1, D]; without pooling, [B, T, D] and lengths [B]."""

    def __init__(self, encoder: Bert) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features_BTD: Tensor = self.encoder(token_ids_BT, lengths_B)
        if self.encoder.embedding_head is not None:
            pooled_BD: Tensor = self.encoder.embedding_head(features_BTD, lengths_B)
            return pooled_BD[:, None]
        return features_BTD, lengths_B.clamp(min=1, max=token_ids_BT.shape[1])


class SoundFrames(nn.Module):
    """samples [B, L], lengths [B] -> states of the frames before wav2vec 2.0's head [B, T, D], and how many are heard.

    A frame counts where all samples that it sees are the row's own; of a sound shorter than one frame, the first does.
    """

    def __init__(self, encoder: Wav2Vec2) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, samples_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        states_BTD = self.encoder.encode(samples_BL, lengths_B)
        seen_BT = self.encoder.find_seen(states_BTD.shape[1], lengths_B)
        return states_BTD, seen_BT.long().sum(dim=1).clamp(min=1)


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
    if isinstance(component, ResNet | MobileVit):
        return take_pixels(MapTokens(component), component.config)
    if isinstance(component, Bert):
        return BertTokens(component)
    if isinstance(component, Wav2Vec2):
        return SoundFrames(component)
    return TextTokens(component) if isinstance(component, ClipText) else component
