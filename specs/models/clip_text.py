"""CLIP's text tower (Radford et al. 2021): causal layers, and the feature of the end-of-text token.

    token ids -> embedding + positions -> causal layers -> norm -> the position of each row's largest id

Shape letters: B batch, T = context_length tokens, C channels.

The end-of-text token is the largest id of the vocabulary; what follows it is padding and, attention being causal,
has no influence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components import ClipTextComponent
from specs.models.layers import Layer


class ClipText(nn.Module):
    """Token ids [batch, context_length] -> features [batch, hidden]."""

    def __init__(self, config: ClipTextComponent) -> None:
        super().__init__()
        width = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.layers = nn.ModuleList(
            Layer(
                hidden_size=width,
                num_heads=config.num_heads,
                mlp_size=config.mlp_width,
                activation=config.activation,
                eps=config.layer_norm_eps,
                causal=True,
            )
            for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        x_BTC = self.token_embedding(token_ids_BT) + self.position_embedding
        for layer in self.layers:
            x_BTC = layer(x_BTC)
        end_B11 = token_ids_BT.argmax(dim=1)[:, None, None]
        end_BC = x_BTC.gather(1, end_B11.expand(-1, 1, x_BTC.shape[2])).squeeze(1)
        features_BC: Tensor = self.output_norm(end_BC)  # row by row, so it may follow the choice of rows
        return features_BC
