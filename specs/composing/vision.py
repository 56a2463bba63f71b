"""Pixels to token features: towers of ViT's shape, and patches alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor, nn

from specs.components import VisionTransformerComponent
from specs.composing.making import fill_seeded, make_config
from specs.models.vision import vit


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a ViT-B/16 unless said otherwise; sizes in pixels."""

    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 768
    num_attention_heads: int = 12
    num_layers: int = 12
    num_channels: int = 3


@final
class PatchEmbedding(nn.Module):
    """Pixels [B, channels, height, width] -> patches [B, N, C]: one convolution of patch size and stride."""

    def __init__(self, config: VisionConfig, *, seed: int = 0) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)
        fill_seeded(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        patches_BNC: Tensor = self.projection(images).flatten(2).transpose(1, 2)
        return patches_BNC


class VisionTransformer(nn.Module):
    """Pixels [B, channels, height, width] in [0, 1] -> features of the patches [B, N, C], without the class token."""

    def __init__(self, config: VisionConfig | VisionTransformerComponent, *, seed: int = 0) -> None:
        super().__init__()
        if isinstance(config, VisionConfig):
            config = _make_vision(
                "vision.vit",
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_size=config.hidden_size,
                num_heads=config.num_attention_heads,
                num_layers=config.num_layers,
                num_channels=config.num_channels,
            )
        self.tower = vit.VisionTransformer(config)
        fill_seeded(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        features_BNC = self.tower.forward_features(images, keep_class_token=False)
        return self.tower.normalise_tokens(features_BNC)


@final
class Vision:
    """Image encoders of ViT-B's sizes; each option of the component of the same name is a keyword."""

    @staticmethod
    def clip(image_size: int = 224, patch_size: int = 16, *, seed: int = 0, **options: Any) -> VisionTransformer:
        """CLIP's (Radford et al. 2021)."""
        return VisionTransformer(_make_vision("vision.clip", image_size, patch_size, **options), seed=seed)

    @staticmethod
    def siglip(image_size: int = 384, patch_size: int = 14, *, seed: int = 0, **options: Any) -> VisionTransformer:
        """SigLIP's (Zhai et al. 2023); pixels beyond the last whole patch are not seen (384 = 27 * 14 + 6)."""
        options = {"ignore_remainder": True, **options}
        return VisionTransformer(_make_vision("vision.siglip", image_size, patch_size, **options), seed=seed)

    @staticmethod
    def vit(image_size: int = 224, patch_size: int = 16, *, seed: int = 0, **options: Any) -> VisionTransformer:
        """ViT's (Dosovitskiy et al. 2020)."""
        return VisionTransformer(_make_vision("vision.vit", image_size, patch_size, **options), seed=seed)


def _make_vision(
    kind: Literal["vision.clip", "vision.siglip", "vision.vit"], image_size: int, patch_size: int, **options: Any
) -> VisionTransformerComponent:
    sizes = {"hidden_size": 768, "num_layers": 12, "num_heads": 12}
    given = {"kind": kind, "image_size": image_size, "patch_size": patch_size}
    return make_config(VisionTransformerComponent, {**given, **sizes, **options})
