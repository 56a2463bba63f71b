"""Vision transformers: `vision.vit` ends in class logits, `vision.clip` in the normalised class token.

    image -> (image - mean) / std -> patches -> [class token; patches] + positions -> layers -> norm(class token)

Shape letters: B batch, C channels, N patches, T = N + 1 tokens.

Pixels are normalised inside the graph, so that an app hands over float32 in [0, 1] and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components import VisionTransformerComponent
from specs.models.layers import Layer


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al. 2020), and CLIP's image tower (Radford et al. 2021).

    CLIP's differs by a LayerNorm before the layers, a patch projection without bias, its activation, and no head.
    """

    def __init__(self, config: VisionTransformerComponent) -> None:
        super().__init__()
        self.config = config
        width, is_clip = config.hidden_size, config.kind == "vision.clip"
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, config.patch_size, stride=config.patch_size, bias=not is_clip
        )
        self.class_token = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(config.num_patches + 1, width))
        self.input_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if is_clip else None
        self.layers = nn.ModuleList(
            Layer(
                hidden_size=width,
                num_heads=config.num_heads,
                mlp_size=config.mlp_width,
                activation=config.resolved_activation,
                eps=config.layer_norm_eps,
                causal=False,
            )
            for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None

    def normalise_pixels(self, image_BCHW: Tensor) -> Tensor:
        """(image - mean) / std as one multiply and one add per channel."""
        mean = torch.tensor(self.config.image_mean, dtype=image_BCHW.dtype)[:, None, None]
        std = torch.tensor(self.config.image_std, dtype=image_BCHW.dtype)[:, None, None]
        return image_BCHW * (1 / std) - mean / std

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[batch, channels, height, width] in [0, 1] -> logits [batch, classes], or features [batch, hidden]."""
        patches_BNC = self.patch_embedding(self.normalise_pixels(image_BCHW)).flatten(2).transpose(1, 2)
        class_B1C = self.class_token.expand(patches_BNC.shape[0], 1, -1)
        x_BTC = torch.cat([class_B1C, patches_BNC], dim=1) + self.position_embedding
        if self.input_norm is not None:
            x_BTC = self.input_norm(x_BTC)
        for layer in self.layers:
            x_BTC = layer(x_BTC)
        features_BC: Tensor = self.output_norm(x_BTC[:, 0])
        return features_BC if self.head is None else self.head(features_BC)
