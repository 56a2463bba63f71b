"""A decoder-only language model in the manner of Llama 2: RMSNorm, rotary positions, grouped queries, SwiGLU.

    x = x + attention(norm(x));  x = x + down(silu(gate(norm(x))) * up(norm(x)));  logits = norm(x) E^T

Two graphs share one `Decoder`: `Prefill` reads a whole prompt, `Decode` one token against a cache of fixed capacity.
Rows are padded on the right. Padding is harmless: attention is causal, a row's logits are taken at its last valid
token, and decoding overwrites the cache slots that padding filled before it ever looks at them.

Shape letters: B batch, T tokens, S cache slots, H heads, K key/value heads, D head dim, C channels, V vocabulary,
P = D / 2 rotary pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs import ops
from specs.components import DecoderComponent

Cache = tuple[Tensor, Tensor]


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class GroupedQueryAttention(nn.Module):
    """Attention in which each key/value head serves several query heads (Ainslie et al. 2023), without biases."""

    def __init__(self, config: DecoderComponent) -> None:
        super().__init__()
        self.head_dim = config.head_width
        self.scale = self.head_dim**-0.5
        self.query = nn.Linear(config.hidden_size, config.num_heads * self.head_dim, bias=False)
        self.key = nn.Linear(config.hidden_size, config.kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(config.hidden_size, config.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(config.num_heads * self.head_dim, config.hidden_size, bias=False)

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        return x_BTC.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2)

    def forward(self, x_BTC: Tensor, angles: Cache, past: Cache | None, start_B: Tensor | None) -> tuple[Tensor, Cache]:
        """Attend over the prompt itself (no `past`), or over a cache that holds `start_B` tokens of each row."""
        q_BHTD = rotate(self._split_heads(self.query(x_BTC)), angles)
        k_BKTD = rotate(self._split_heads(self.key(x_BTC)), angles)
        v_BKTD = self._split_heads(self.value(x_BTC))
        if past is None or start_B is None:
            mixed_BHTD = ops.attention(q_BHTD, k_BKTD, v_BKTD, scale=self.scale, causal=True)
            cache = k_BKTD, v_BKTD
        else:
            mixed_BHTD, *updated = ops.cached_attention(q_BHTD, k_BKTD, v_BKTD, *past, start_B, scale=self.scale)
            cache = updated[0], updated[1]
        return self.out(mixed_BHTD.transpose(1, 2).flatten(2)), cache


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), without biases."""

    def __init__(self, hidden_size: int, mlp_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, mlp_size, bias=False)
        self.up = nn.Linear(hidden_size, mlp_size, bias=False)
        self.down = nn.Linear(mlp_size, hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        out_BTC: Tensor = self.down(ops.gated_linear(x_BTC, self.gate.weight, self.up.weight, activation="silu"))
        return out_BTC


class DecoderLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: DecoderComponent) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = GroupedQueryAttention(config)
        self.mlp_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGlu(config.hidden_size, config.mlp_size)

    def forward(self, x_BTC: Tensor, angles: Cache, past: Cache | None, start_B: Tensor | None) -> tuple[Tensor, Cache]:
        mixed_BTC, cache = self.attention(self.attention_norm(x_BTC), angles, past, start_B)
        x_BTC = x_BTC + mixed_BTC
        return x_BTC + self.mlp(self.mlp_norm(x_BTC)), cache


class Decoder(nn.Module):
    """The parameters that `Prefill` and `Decode` share, and one pass over `T` tokens at given positions."""

    def __init__(self, config: DecoderComponent) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.output_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, token_ids_BT: Tensor, position_BT: Tensor, pasts: list[Cache] | None = None, start_B: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Hidden states [B, T, C] before the last norm, and each layer's keys and values."""
        x_BTC: Tensor = self.token_embedding(token_ids_BT)
        angles = compute_angles(position_BT, self.config, x_BTC.dtype)
        caches = []
        for index, layer in enumerate(self.layers):
            x_BTC, cache = layer(x_BTC, angles, None if pasts is None else pasts[index], start_B)
            caches.append(cache)
        return x_BTC, caches

    def compute_logits(self, x_BC: Tensor) -> Tensor:
        """[B, C] -> [B, V]."""
        weight_VC = self.token_embedding.weight if self.head is None else self.head.weight
        return nn.functional.linear(self.output_norm(x_BC), weight_VC)


class Prefill(nn.Module):
    """token_ids [B, T], lengths [B] -> logits [B, V] at each row's last valid token, then keys and values by layer."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
        position_1T = torch.arange(token_ids_BT.shape[1], device=token_ids_BT.device)[None, :]
        x_BTC, caches = self.decoder(token_ids_BT, position_1T)
        last_B1C = (lengths_B - 1)[:, None, None].expand(-1, 1, x_BTC.shape[2])
        last_BC = x_BTC.gather(1, last_B1C).squeeze(1)
        return self.decoder.compute_logits(last_BC), *(tensor for cache in caches for tensor in cache)


class Decode(nn.Module):
    """token_ids [B, 1], lengths [B] and the cache -> logits [B, V], then the updated keys and values by layer.

    `lengths` counts the tokens that the cache already holds, which is the position of this token.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_B1: Tensor, lengths_B: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        pasts = list(zip(past[::2], past[1::2], strict=True))
        x_B1C, caches = self.decoder(token_ids_B1, lengths_B[:, None], pasts, lengths_B)
        return self.decoder.compute_logits(x_B1C.squeeze(1)), *(tensor for cache in caches for tensor in cache)


def compute_angles(position_BT: Tensor, config: DecoderComponent, dtype: torch.dtype) -> Cache:
    """Cosines and sines [B, 1, T, P] of position * theta^(-2p/D) (Su et al. 2021).

    At least float32 whatever `dtype` is: float16 cannot hold a position above 2048 exactly, and the product matters
    modulo 2 pi.
    """
    exact = torch.promote_types(dtype, torch.float32)
    pairs = range(0, config.head_width, 2)
    frequency_P = torch.tensor([config.rope_theta ** (-p / config.head_width) for p in pairs], dtype=exact)
    angle_B1TP = (position_BT.to(exact)[:, :, None] * frequency_P)[:, None]
    return angle_B1TP.cos().to(dtype), angle_B1TP.sin().to(dtype)


def rotate(x_BHTD: Tensor, angles: Cache) -> Tensor:
    """Turn each pair of channels (p, p + D/2) by its angle: Llama's rotate-half order, not GPT-J's interleaved one."""
    cos_B1TP, sin_B1TP = angles
    first_BHTP, second_BHTP = x_BHTD.chunk(2, dim=-1)
    return torch.cat(
        [first_BHTP * cos_B1TP - second_BHTP * sin_B1TP, second_BHTP * cos_B1TP + first_BHTP * sin_B1TP], dim=-1
    )
