"""The text towers of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023).

    token ids -> embedding + positions -> layers -> norm -> one token of each row -> [projection]

Shape letters: B batch, T tokens, C channels.

CLIP's layers are causal, and the row's token is its end of text: what follows it is padding and has no influence.
SigLIP's are not, and the token is the last one, padding or not: texts are padded to the length of the training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components import ClipTextComponent
from specs.models.layers import Layer


class ClipText(nn.Module):
    """Token ids [batch, tokens], at most `context_length` -> features [batch, feature size]."""

    def __init__(self, config: ClipTextComponent) -> None:
        super().__init__()
        self.config = config
        width, is_clip = config.hidden_size, config.kind == "text.clip"
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.layers = nn.ModuleList(
            Layer(
                hidden_size=width,
                num_heads=config.num_heads,
                mlp_size=config.mlp_width,
                activation=config.activation,
                eps=config.layer_norm_eps,
                causal=is_clip,
            )
            for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.head_size, bias=not is_clip) if config.head_size else None

    def forward_features(self, token_ids_BT: Tensor, *, layer: int = -1) -> Tensor:
        """The hidden states [B, T, C] that layer number `layer` leaves, before the last norm.

        Args:
            layer: counted as transformers counts `hidden_states`: 0 is what the first layer reads, -1 what the last
                one leaves, -2 what the one before it does. Layers behind it are not run.
        """
        count = layer if layer >= 0 else self.config.num_layers + 1 + layer
        assert 0 <= count <= self.config.num_layers, f"layer {layer} of {self.config.num_layers}"
        x_BTC: Tensor = self.token_embedding(token_ids_BT) + self.position_embedding[: token_ids_BT.shape[1]]
        for block in self.layers[:count]:
            x_BTC = block(x_BTC)
        return x_BTC

    def find_end(self, token_ids_BT: Tensor) -> Tensor:
        """Where each row's end of text stands, [B]: the first `end_token`, or the first of the largest ids."""
        end = self.config.end_token
        return token_ids_BT.argmax(dim=1) if end is None else (token_ids_BT == end).int().argmax(dim=1)

    def pool(self, x_BTC: Tensor, token_ids_BT: Tensor) -> Tensor:
        """What the last layer leaves -> features [B, feature size]."""
        if self.config.kind == "text.siglip":
            chosen_BC = x_BTC[:, -1]
        else:
            chosen_BC = x_BTC.gather(
                1, self.find_end(token_ids_BT)[:, None, None].expand(-1, 1, x_BTC.shape[2])
            ).squeeze(1)
        features_BC: Tensor = self.output_norm(chosen_BC)  # row by row, so it may follow the choice of rows
        return features_BC if self.projection is None else self.projection(features_BC)

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        return self.pool(self.forward_features(token_ids_BT), token_ids_BT)


class ClipTextEmbedding(nn.Module):
    """token ids [B, T] -> embedding [B, feature size], normalised token features [B, T, C]."""

    def __init__(self, tower: ClipText) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, token_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        x_BTC = self.tower.forward_features(token_ids_BT)
        return self.tower.pool(x_BTC, token_ids_BT), self.tower.output_norm(x_BTC)
