"""What encoders of text share: padding, a bias by distance, and how tokens become one vector.

Shape letters: B batch, T and S tokens (queries and keys), H heads, D head dim, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components import TextEncoderComponent
from specs.models.layers import activate
from specs.models.text.distance import list_buckets


def make_padding_bias(lengths_B: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, S], 0 at a row's first `lengths` keys, else the lowest number there is: added to scores, it hides."""
    valid_BS = torch.arange(tokens, device=lengths_B.device)[None, :] < lengths_B[:, None]
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(valid_BS, torch.zeros((), dtype=dtype), lowest)[:, None, None, :]


class DistanceBias(nn.Module):
    """A learned bias [1, H, T, S] of attention scores, by the bucket of the distance between key and query."""

    def __init__(self, buckets: int, farthest: int, num_heads: int) -> None:
        super().__init__()
        self.farthest, self.buckets = farthest, list_buckets(buckets, farthest)
        self.embedding = nn.Embedding(buckets, num_heads)

    def forward(self, tokens: int) -> Tensor:
        position_T = torch.arange(tokens)
        distance_TS = position_T[None, :] - position_T[:, None]
        index_TS = distance_TS.clamp(-self.farthest, self.farthest) + self.farthest
        bias_TSH: Tensor = self.embedding(torch.tensor(self.buckets)[index_TS])
        return bias_TSH.permute(2, 0, 1)[None]


class EmbeddingHead(nn.Module):
    """Token features [B, T, C] and lengths [B] -> embedding [B, feature size], as sentence-transformers pools."""

    def __init__(self, config: TextEncoderComponent) -> None:
        super().__init__()
        self.config = config
        pooled = config.pooler_size or config.hidden_size
        self.pooler = nn.Linear(config.hidden_size, config.pooler_size) if config.pooler_size else None
        self.projection = (
            nn.Linear(pooled, config.projection_size, bias=config.projection_bias) if config.projection_size else None
        )

    def pool(self, x_BTC: Tensor, lengths_B: Tensor) -> Tensor:
        """[B, C] of each row's valid tokens."""
        if self.config.pooling == "class":
            return x_BTC[:, 0]
        if self.config.pooling == "last":
            return x_BTC.gather(1, (lengths_B - 1)[:, None, None].expand(-1, 1, x_BTC.shape[2])).squeeze(1)
        place_T = torch.arange(x_BTC.shape[1])
        valid_BT1 = (place_T[None, :] < lengths_B[:, None])[:, :, None]
        if self.config.pooling == "max":
            return torch.where(valid_BT1, x_BTC, torch.full((), -1e9, dtype=x_BTC.dtype)).amax(dim=1)
        share_BT1 = valid_BT1.to(x_BTC.dtype)
        if self.config.pooling == "weighted_mean":
            share_BT1 = share_BT1 * (place_T + 1).to(x_BTC.dtype)[None, :, None]
        total_B1 = share_BT1.sum(dim=1)
        if self.config.pooling == "mean_sqrt_length":
            total_B1 = total_B1.sqrt()
        return (x_BTC * share_BT1).sum(dim=1) / total_B1

    def forward(self, x_BTC: Tensor, lengths_B: Tensor) -> Tensor:
        pooled_BC = self.pool(x_BTC, lengths_B)
        if self.pooler is not None:
            pooled_BC = activate(self.pooler(pooled_BC), self.config.pooler_activation)
        if self.projection is not None:
            pooled_BC = self.projection(pooled_BC)
            if self.config.projection_activation is not None:
                pooled_BC = activate(pooled_BC, self.config.projection_activation)
        return functional.normalize(pooled_BC, dim=-1) if self.config.normalise else pooled_BC


class TextEmbedding(nn.Module):
    """token ids [B, T], lengths [B] -> (embedding [B, feature size], where there is pooling,) token features [B, T, C].

    Features of padding mean nothing.
    """

    def __init__(self, encoder: nn.Module, head: EmbeddingHead | None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
        x_BTC: Tensor = self.encoder(token_ids_BT, lengths_B)
        return (x_BTC,) if self.head is None else (self.head(x_BTC, lengths_B), x_BTC)
