"""What the two graphs of a decoder do with it, whatever its layers are.

    Prefill   a whole prompt        -> logits at each row's last valid token, and each layer's keys and values
    Decode    one token and a cache -> logits, and the cache with this token in it

Rows are padded on the right. Padding is harmless: attention is causal, a row's logits are taken at its last valid
token, and decoding overwrites the cache slots that padding filled before it ever looks at them.

Shape letters: B batch, T tokens, S cache slots, K key/value heads, D head dim, C channels, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

Cache = tuple[Tensor, Tensor]  # keys and values of one layer, each [B, K, S, D]


class CausalModel(nn.Module, ABC):
    """A decoder: the parameters that its graphs share."""

    media_token: int | None = None  # id that stands for an embedding of a picture, film or sound, where they are read

    @abstractmethod
    def embed(self, token_ids_BT: Tensor) -> Tensor:
        """[B, T] -> [B, T, C]."""

    @abstractmethod
    def forward(
        self, x_BTC: Tensor, position_BT: Tensor, pasts: list[Cache] | None = None, start_B: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Hidden states [B, T, C] before the last norm, and each layer's keys and values.

        Args:
            pasts: a cache of fixed capacity for each layer, which holds `start_B` tokens of each row; the result is
                that cache with the T new tokens in it. Without, the tokens see each other only.
        """

    @abstractmethod
    def compute_logits(self, x_BC: Tensor) -> Tensor:
        """[B, C] before the last norm -> [B, V]."""


class Prefill(nn.Module):
    """token_ids [B, T], lengths [B] -> logits [B, V] at each row's last valid token, then keys and values by layer."""

    def __init__(self, decoder: CausalModel) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
        return read_prompt(self.decoder, self.decoder.embed(token_ids_BT), lengths_B)


class Decode(nn.Module):
    """token_ids [B, 1], lengths [B] and the cache -> logits [B, V], then the updated keys and values by layer.

    `lengths` counts the tokens that the cache already holds, which is the position of this token.
    """

    def __init__(self, decoder: CausalModel) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_B1: Tensor, lengths_B: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        pasts = list(zip(past[::2], past[1::2], strict=True))
        x_B1C, caches = self.decoder(self.decoder.embed(token_ids_B1), lengths_B[:, None], pasts, lengths_B)
        return self.decoder.compute_logits(x_B1C.squeeze(1)), *(tensor for cache in caches for tensor in cache)


def read_prompt(decoder: CausalModel, x_BTC: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
    """Embeddings of a prompt -> logits [B, V] at each row's last valid token, then keys and values by layer."""
    position_1T = torch.arange(x_BTC.shape[1], device=x_BTC.device)[None, :]
    x_BTC, caches = decoder(x_BTC, position_1T)
    last_B1C = (lengths_B - 1)[:, None, None].expand(-1, 1, x_BTC.shape[2])
    last_BC = x_BTC.gather(1, last_B1C).squeeze(1)
    return decoder.compute_logits(last_BC), *(tensor for cache in caches for tensor in cache)
