"""MusicGen's decoder (Copet et al. 2023): one code of each codebook a step, under cross attention to a text.

    x = sum of the codebooks' embeddings + sines and cosines of the position
    x = x + self(norm(x));  x = x + cross(norm(x), text);  x = x + mlp(norm(x))        no biases but the norms'
    logits of codebook q = norm(x) E_q^T

`Prefill` reads the first frames and makes each layer's keys and values of the text, `Decode` reads one frame against a
cache of fixed capacity. A row whose text has length 0 has no text: its states are zeros, as guidance wants them.

Shape letters: B batch, Q codebooks, T frames, S cache slots, N text tokens, H heads, D head dim, C channels,
V codes of a codebook.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from specs import ops
from specs.components.audio.musicgen import MusicgenComponent
from specs.models.layers import activate

Pair = tuple[Tensor, Tensor]  # keys and values, each [B, H, T, D]


class Past(NamedTuple):
    """What a step finds: each layer's keys and values, and how many frames of each row they hold, [B]."""

    pairs: list[Pair]
    start: Tensor


class SelfAttention(nn.Module):
    """Causal attention, over the frames given or over a cache."""

    def __init__(self, config: MusicgenComponent) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor, past: Pair | None, start_B: Tensor | None) -> tuple[Tensor, Pair]:
        q_BHTD, k_BHTD, v_BHTD = (split_heads(part, self.head_dim) for part in self.qkv(x_BTC).chunk(3, dim=-1))
        scale, pair = self.head_dim**-0.5, (k_BHTD, v_BHTD)
        if past is None or start_B is None:
            mixed_BHTD = ops.attention(q_BHTD, *pair, scale=scale, causal=True)
        else:
            mixed_BHTD, *updated = ops.cached_attention(q_BHTD, *pair, *past, start_B, scale=scale)
            pair = updated[0], updated[1]
        return self.out(mixed_BHTD.transpose(1, 2).flatten(2)), pair


class CrossAttention(nn.Module):
    """Attention to the text, whose keys and values are made once."""

    def __init__(self, config: MusicgenComponent) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.pair = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def make_pair(self, text_BNC: Tensor) -> Pair:
        k_BNC, v_BNC = self.pair(text_BNC).chunk(2, dim=-1)
        return split_heads(k_BNC, self.head_dim), split_heads(v_BNC, self.head_dim)

    def forward(self, x_BTC: Tensor, pair: Pair, mask_B11N: Tensor) -> Tensor:
        q_BHTD = split_heads(self.query(x_BTC), self.head_dim)
        mixed_BHTD = ops.attention(q_BHTD, *pair, mask_B11N, scale=self.head_dim**-0.5)
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC


class MusicgenLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: MusicgenComponent) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.activation = config.activation
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(config)
        self.cross_norm = nn.LayerNorm(width, eps=eps)
        self.cross = CrossAttention(config)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, width, bias=False)

    def forward(
        self, x_BTC: Tensor, cross: Pair, mask_B11N: Tensor, past: Pair | None, start_B: Tensor | None
    ) -> tuple[Tensor, Pair]:
        mixed_BTC, pair = self.attention(self.attention_norm(x_BTC), past, start_B)
        x_BTC = x_BTC + mixed_BTC
        x_BTC = x_BTC + self.cross(self.cross_norm(x_BTC), cross, mask_B11N)
        return x_BTC + self.down(activate(self.up(self.mlp_norm(x_BTC)), self.activation)), pair


class MusicgenDecoder(nn.Module):
    """The parameters that `Prefill` and `Decode` share.

    Args:
        positions: how many frames a row can have at most.
    """

    def __init__(self, config: MusicgenComponent, *, positions: int) -> None:
        super().__init__()
        self.config = config
        width, codebooks = config.hidden_size, config.num_codebooks
        self.positions = make_positions(positions, width)
        self.token_embedding = nn.Embedding(codebooks * (config.vocab_size + 1), width)  # codebook below codebook
        self.text_projection = nn.Linear(config.text_size, width) if config.has_projection else None
        self.layers = nn.ModuleList(MusicgenLayer(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, codebooks * config.vocab_size, bias=False)

    def embed(self, codes_BQT: Tensor, position_BT: Tensor) -> Tensor:
        """[B, T, C]."""
        first_Q = torch.arange(self.config.num_codebooks, device=codes_BQT.device) * (self.config.vocab_size + 1)
        x_BTC: Tensor = self.token_embedding(codes_BQT + first_Q[:, None]).sum(1)
        return x_BTC + torch.from_numpy(self.positions).to(x_BTC.dtype)[position_BT]

    def make_crosses(self, states_BNC: Tensor, text_lengths_B: Tensor) -> list[Pair]:
        """Each layer's keys and values of the text; zeros where there is none."""
        text_BNC = states_BNC if self.text_projection is None else self.text_projection(states_BNC)
        inside_BN = torch.arange(states_BNC.shape[1], device=states_BNC.device) < text_lengths_B[:, None]
        text_BNC = text_BNC * inside_BN[:, :, None].to(text_BNC.dtype)
        return [layer.cross.make_pair(text_BNC) for layer in self._list_layers()]

    def forward(
        self, x_BTC: Tensor, crosses: list[Pair], text_lengths_B: Tensor, past: Past | None = None
    ) -> tuple[Tensor, list[Pair]]:
        """Logits [B, Q, V] of the last frame, and each layer's keys and values."""
        text = torch.arange(crosses[0][0].shape[2], device=x_BTC.device)
        hidden_B11N = (text >= text_lengths_B[:, None])[:, None, None, :]
        shown_B11N = torch.zeros_like(hidden_B11N, dtype=x_BTC.dtype)
        mask_B11N = shown_B11N.masked_fill(hidden_B11N, torch.finfo(x_BTC.dtype).min)
        pairs = []
        for index, layer in enumerate(self._list_layers()):
            own, start_B = (None, None) if past is None else (past.pairs[index], past.start)
            x_BTC, pair = layer(x_BTC, crosses[index], mask_B11N, own, start_B)
            pairs.append(pair)
        logits: Tensor = self.head(self.output_norm(x_BTC[:, -1]))
        return logits.reshape(-1, self.config.num_codebooks, self.config.vocab_size), pairs

    def _list_layers(self) -> list[MusicgenLayer]:
        return [layer for layer in self.layers if isinstance(layer, MusicgenLayer)]


class MusicgenPrefill(nn.Module):
    """codes [B, Q, T], states [B, N, text size], text_lengths [B] -> logits [B, Q, V], keys and values by layer, of the
    frames and then of the text."""

    def __init__(self, decoder: MusicgenDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, codes_BQT: Tensor, states_BNC: Tensor, text_lengths_B: Tensor) -> tuple[Tensor, ...]:
        position_1T = torch.arange(codes_BQT.shape[2], device=codes_BQT.device)[None, :]
        crosses = self.decoder.make_crosses(states_BNC, text_lengths_B)
        logits, pairs = self.decoder(self.decoder.embed(codes_BQT, position_1T), crosses, text_lengths_B)
        return logits, *(tensor for pair in (*pairs, *crosses) for tensor in pair)


class MusicgenDecode(nn.Module):
    """codes [B, Q, 1], lengths [B], text_lengths [B], the cache and the text's keys and values -> logits [B, Q, V], and
    the updated cache. `lengths` counts the frames that the cache holds."""

    def __init__(self, decoder: MusicgenDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, codes_BQ1: Tensor, lengths_B: Tensor, text_lengths_B: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        layers = len(pairs) // 2
        x_B1C = self.decoder.embed(codes_BQ1, lengths_B[:, None])
        logits, updated = self.decoder(x_B1C, pairs[layers:], text_lengths_B, Past(pairs[:layers], lengths_B))
        return logits, *(tensor for pair in updated for tensor in pair)


def split_heads(x_BTC: Tensor, head_dim: int) -> Tensor:
    """[B, T, C] -> [B, H, T, D]."""
    batch, tokens, _ = x_BTC.shape
    return x_BTC.reshape(batch, tokens, -1, head_dim).transpose(1, 2)


def make_positions(count: int, width: int) -> NDArray[np.float32]:
    """Cosines, then sines, of position / 10000^(i / (half - 1)): [count, width].

    In float32 by torch's own functions, as the published model has it: at position 2000 the exact angles are 1e-4 away.
    """
    half = width // 2
    place = torch.arange(half, device="cpu").float()
    rate = torch.exp(place * -(math.log(10000) / (half - 1)))
    angle = torch.arange(count, device="cpu").float()[:, None] * rate[None, :]
    table = torch.cat([angle.cos(), angle.sin(), torch.zeros(count, width % 2, device="cpu")], dim=1)
    values: NDArray[np.float32] = table.numpy()
    return values
