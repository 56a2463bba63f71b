"""Vision transformers: ViT, DINOv2, and the image towers of CLIP and SigLIP.

    image -> (image - mean) / std -> patches -> [class token; registers; patches] + positions -> [norm] -> layers
    -> [norm] -> pooled -> [pooler] -> [projection] -> embedding, or logits

Shape letters: B batch, C channels, N patches, T tokens, H heads, D head dim.

Pixels are normalised inside the graph, so that an app hands over float32 in [0, 1] and nothing else. Another model
that looks through a tower (LLaVA) takes `forward_features`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs import ops
from specs.components import VisionTransformerComponent
from specs.models.layers import Layer, Mlp, activate
from specs.models.vision.pixels import normalise_pixels


class AttentionPool(nn.Module):
    """SigLIP's head (Zhai et al. 2023): one learned query attends over all tokens; then x + mlp(norm(x))."""

    def __init__(self, config: VisionTransformerComponent) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim = config.num_heads, width // config.num_heads
        self.query_token = nn.Parameter(torch.empty(width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width, config.mlp_width, config.resolved_activation)

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.reshape(-1, x_BTC.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x_BTC: Tensor) -> Tensor:
        k_BHTD, v_BHTD = (self._split_heads(part) for part in self.key_value(x_BTC).chunk(2, dim=-1))
        q_1HxD = self._split_heads(self.query(self.query_token[None, None, :]))  # x: one query
        q_BHxD = q_1HxD.expand(k_BHTD.shape[0], -1, -1, -1)
        pooled_BHxD = ops.attention(q_BHxD, k_BHTD, v_BHTD, scale=self.head_dim**-0.5)
        pooled_BC = self.out(pooled_BHxD.flatten(1))
        out_BC: Tensor = pooled_BC + self.mlp(self.mlp_norm(pooled_BC))
        return out_BC


class VisionTransformer(nn.Module):
    """One tower; `VisionTransformerComponent` says what its kinds are."""

    def __init__(self, config: VisionTransformerComponent) -> None:
        super().__init__()
        self.config = config
        width, is_clip = config.hidden_size, config.kind == "vision.clip"
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, config.patch, stride=config.patch, bias=not is_clip
        )
        self.class_token = nn.Parameter(torch.empty(width)) if config.has_class_token else None
        self.register_tokens = nn.Parameter(torch.empty(config.num_registers, width)) if config.num_registers else None
        self.position_embedding = nn.Parameter(torch.empty(config.num_patches + config.has_class_token, width))
        self.input_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if is_clip else None
        self.layers = nn.ModuleList(
            Layer(
                hidden_size=width,
                num_heads=config.num_heads,
                mlp_size=config.mlp_width,
                activation=config.resolved_activation,
                eps=config.layer_norm_eps,
                causal=False,
                qkv_bias=config.qkv_bias,
                layer_scale=config.layer_scale,
            )
            for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.has_output_norm else None
        self.attention_pool = AttentionPool(config) if config.resolved_pooling == "attention" else None
        self.pooler = nn.Linear(width, config.pooler_size) if config.pooler_size else None
        self.projection = (
            nn.Linear(config.pooler_size or width, config.projection_size, bias=False)
            if config.projection_size
            else None
        )
        self.head = nn.Linear(config.pooler_size or width, config.num_classes) if config.num_classes else None

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """[batch, channels, height, width] in [0, 1] -> what the first layer reads."""
        pixels_BCHW = normalise_pixels(image_BCHW, self.config)
        patches_BNC: Tensor = self.patch_embedding(pixels_BCHW).flatten(2).transpose(1, 2)
        batch = patches_BNC.shape[0]
        if self.class_token is None:
            x_BTC = patches_BNC + self.position_embedding
        elif self.register_tokens is None:
            class_B1C = self.class_token.expand(batch, 1, -1)
            x_BTC = torch.cat([class_B1C, patches_BNC], dim=1) + self.position_embedding
        else:  # registers have no position
            class_B1C = (self.class_token + self.position_embedding[0]).expand(batch, 1, -1)
            registers_BRC = self.register_tokens.expand(batch, -1, -1)
            x_BTC = torch.cat([class_B1C, registers_BRC, patches_BNC + self.position_embedding[1:]], dim=1)
        read_BTC: Tensor = x_BTC if self.input_norm is None else self.input_norm(x_BTC)
        return read_BTC

    def forward_features(self, image_BCHW: Tensor, *, layer: int = -1, keep_class_token: bool = True) -> Tensor:
        """The hidden states [B, T, C] that layer number `layer` leaves, before any norm behind the layers.

        Args:
            layer: counted as transformers counts `hidden_states`: 0 is what the first layer reads, `num_layers` and -1
                are what the last one leaves, -2 what the one before it does. Layers behind it are not run.
            keep_class_token: False drops what stands before the patches.
        """
        count = layer if layer >= 0 else self.config.num_layers + 1 + layer
        assert 0 <= count <= self.config.num_layers, f"layer {layer} of {self.config.num_layers}"
        x_BTC = self.embed(image_BCHW)
        for block in self.layers[:count]:
            x_BTC = block(x_BTC)
        return x_BTC if keep_class_token else self._drop_prefix(x_BTC)

    def _drop_prefix(self, x_BTC: Tensor) -> Tensor:
        return x_BTC[:, self.config.num_tokens - self.config.num_patches :]

    def normalise_tokens(self, x_BTC: Tensor) -> Tensor:
        """What the last layer leaves -> token features [B, T, C]; CLIP leaves them as they are."""
        is_normed = self.output_norm is not None and self.config.kind != "vision.clip"
        return self.output_norm(x_BTC) if is_normed else x_BTC  # type: ignore[misc]

    def pool(self, x_BTC: Tensor) -> Tensor:
        """What the last layer leaves -> the embedding [B, feature size]."""
        pooling = self.config.resolved_pooling
        assert pooling != "none", "this tower has token features only"
        if pooling == "class":
            assert self.output_norm is not None
            pooled_BC: Tensor = self.output_norm(x_BTC[:, 0])
        elif pooling == "mean":
            pooled_BC = self._drop_prefix(self.normalise_tokens(x_BTC)).mean(dim=1)
        else:
            assert self.attention_pool is not None
            pooled_BC = self.attention_pool(self.normalise_tokens(x_BTC))
        if self.pooler is not None:
            pooled_BC = activate(self.pooler(pooled_BC), self.config.pooler_activation)
        return pooled_BC if self.projection is None else self.projection(pooled_BC)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[batch, channels, height, width] in [0, 1] -> logits [batch, classes], or embedding [batch, feature size]."""
        features_BC = self.pool(self.forward_features(image_BCHW))
        return features_BC if self.head is None else self.head(features_BC)


class ImageEmbedding(nn.Module):
    """image -> embedding [B, feature size] (where there is pooling), token features [B, T, C]."""

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        x_BTC = self.tower.forward_features(image_BCHW)
        tokens_BTC = self.tower.normalise_tokens(x_BTC)
        return (tokens_BTC,) if self.tower.config.resolved_pooling == "none" else (self.tower.pool(x_BTC), tokens_BTC)
