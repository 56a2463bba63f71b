"""Whisper (Radford et al. 2022): an encoder over a chunk of sound, and a decoder that writes what was said.

    encoder   samples -> log-mel -> gelu(conv) -> gelu(conv, stride 2) -> + positions -> layers -> norm = states
    decoder   tokens + positions -> layers of (self attention, cross attention, MLP) -> norm -> logits = x E^T

All layers are pre-norm; keys have no bias. The decoder has three graphs over one set of weights. `Cross` makes each
layer's keys and values of the states, once a chunk, however often a prompt is tried on it; `Prefill` reads a prompt,
`Decode` one token against a cache of fixed capacity. Rows are padded on the right, which is harmless for the reasons
that `specs.models.text.decoder` gives.

Shape letters: B batch, L samples, M mel bands, F frames, N = F / 2 encoder states, T tokens, S cache slots, H heads,
D head dim, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components import WhisperDecoderComponent, WhisperEncoderComponent
from specs.models.audio.mel import MelSpectrogram, compute_whisper_log
from specs.models.layers import Mlp

Pair = tuple[Tensor, Tensor]  # keys and values, each [B, H, T, D]


class WhisperAttention(nn.Module):
    """Multi-head attention whose keys have no bias; the caller says which keys and values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        return x_BTC.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2)

    def make_pair(self, x_BTC: Tensor) -> Pair:
        """Keys and values of what is attended to."""
        return self._split_heads(self.key(x_BTC)), self._split_heads(self.value(x_BTC))

    def attend(self, x_BTC: Tensor, pair: Pair, *, causal: bool = False) -> Tensor:
        """Queries of `x` over `pair`."""
        q_BHTD = self._split_heads(self.query(x_BTC))
        return self._join_heads(ops.attention(q_BHTD, *pair, scale=self.head_dim**-0.5, causal=causal))

    def attend_cached(self, x_BTC: Tensor, past: Pair, start_B: Tensor) -> tuple[Tensor, Pair]:
        """Queries of `x` over `past`, into which its own keys and values are written from `start_B` on."""
        q_BHTD, scale = self._split_heads(self.query(x_BTC)), self.head_dim**-0.5
        mixed_BHTD, *pair = ops.cached_attention(q_BHTD, *self.make_pair(x_BTC), *past, start_B, scale=scale)
        return self._join_heads(mixed_BHTD), (pair[0], pair[1])

    def _join_heads(self, mixed_BHTD: Tensor) -> Tensor:
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC


class WhisperEncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: WhisperEncoderComponent) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = WhisperAttention(config.hidden_size, config.num_heads)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.mlp_width, config.activation)

    def forward(self, x_BNC: Tensor) -> Tensor:
        normed_BNC = self.attention_norm(x_BNC)
        x_BNC = x_BNC + self.attention.attend(normed_BNC, self.attention.make_pair(normed_BNC))
        out_BNC: Tensor = x_BNC + self.mlp(self.mlp_norm(x_BNC))
        return out_BNC


class WhisperEncoder(nn.Module):
    """Samples [B, L] in [-1, 1] -> states [B, N, C]."""

    def __init__(self, config: WhisperEncoderComponent) -> None:
        super().__init__()
        width = config.hidden_size
        self.mel = MelSpectrogram(config.mel)
        self.conv1 = nn.Conv1d(config.num_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.position_embedding = nn.Parameter(torch.empty(config.source_positions, width))
        self.layers = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def compute_log_mel(self, samples_BL: Tensor) -> Tensor:
        """[B, M, F]; the frame that is centred behind the last sample is dropped."""
        return compute_whisper_log(self.mel(samples_BL)[:, :, :-1])

    def forward(self, samples_BL: Tensor) -> Tensor:
        return self.read_mel(self.compute_log_mel(samples_BL))

    def read_mel(self, log_mel_BMF: Tensor) -> Tensor:
        """A log-mel spectrogram [B, M, F] of at most `num_frames` frames -> states [B, N, C], N = F / 2."""
        x_BCF = functional.gelu(self.conv1(log_mel_BMF))
        x_BNC = functional.gelu(self.conv2(x_BCF)).transpose(1, 2)
        x_BNC = x_BNC + self.position_embedding[: x_BNC.shape[1]]
        for layer in self.layers:
            x_BNC = layer(x_BNC)
        states_BNC: Tensor = self.output_norm(x_BNC)
        return states_BNC


class WhisperDecoderLayer(nn.Module):
    """x + self(norm(x)), x + cross(norm(x)), x + mlp(norm(x))."""

    def __init__(self, config: WhisperDecoderComponent) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = WhisperAttention(config.hidden_size, config.num_heads)
        self.cross_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross = WhisperAttention(config.hidden_size, config.num_heads)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.mlp_width, config.activation)

    def forward(self, x_BTC: Tensor, cross: Pair, past: Pair | None, start_B: Tensor | None) -> tuple[Tensor, Pair]:
        normed_BTC = self.attention_norm(x_BTC)
        if past is None or start_B is None:
            pair = self.attention.make_pair(normed_BTC)
            mixed_BTC = self.attention.attend(normed_BTC, pair, causal=True)
        else:
            mixed_BTC, pair = self.attention.attend_cached(normed_BTC, past, start_B)
        x_BTC = x_BTC + mixed_BTC
        x_BTC = x_BTC + self.cross.attend(self.cross_norm(x_BTC), cross)
        return x_BTC + self.mlp(self.mlp_norm(x_BTC)), pair


class WhisperDecoder(nn.Module):
    """The parameters that the decoder's graphs share, and one pass over `T` tokens at given positions."""

    def __init__(self, config: WhisperDecoderComponent) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size)
        self.layers = nn.ModuleList(WhisperDecoderLayer(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        tied = config.tie_embeddings
        self.head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        token_ids_BT: Tensor,
        position_BT: Tensor,
        crosses: list[Pair],
        pasts: list[Pair] | None = None,
        start_B: Tensor | None = None,
    ) -> tuple[Tensor, list[Pair]]:
        """Hidden states [B, T, C] before the last norm, and each layer's keys and values."""
        x_BTC = self.token_embedding(token_ids_BT) + self.position_embedding(position_BT)
        pairs = []
        for index, layer in enumerate(self.layers):
            x_BTC, pair = layer(x_BTC, crosses[index], None if pasts is None else pasts[index], start_B)
            pairs.append(pair)
        return x_BTC, pairs

    def make_crosses(self, states_BNC: Tensor) -> list[Pair]:
        """Each layer's keys and values of the encoder's states."""
        layers = cast(Iterable[WhisperDecoderLayer], self.layers)
        return [layer.cross.make_pair(states_BNC) for layer in layers]

    def compute_logits(self, x_BC: Tensor) -> Tensor:
        """[B, C] -> [B, V]."""
        weight_VC = self.token_embedding.weight if self.head is None else self.head.weight
        return functional.linear(self.output_norm(x_BC), weight_VC)


class Cross(nn.Module):
    """encoder_states [B, N, C] -> keys and values by layer, each [B, H, N, D]."""

    def __init__(self, decoder: WhisperDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, states_BNC: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for pair in self.decoder.make_crosses(states_BNC) for tensor in pair)


class Prefill(nn.Module):
    """token_ids [B, T], lengths [B], cross keys and values -> logits [B, V], then keys and values by layer.

    The logits are those at each row's last valid token.
    """

    def __init__(self, decoder: WhisperDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor, *cross: Tensor) -> tuple[Tensor, ...]:
        position_1T = torch.arange(token_ids_BT.shape[1], device=token_ids_BT.device)[None, :]
        x_BTC, pairs = self.decoder(token_ids_BT, position_1T, pair_up(cross))
        last_B1C = (lengths_B - 1)[:, None, None].expand(-1, 1, x_BTC.shape[2])
        last_BC = x_BTC.gather(1, last_B1C).squeeze(1)
        return self.decoder.compute_logits(last_BC), *(tensor for pair in pairs for tensor in pair)


class Decode(nn.Module):
    """token_ids [B, 1], lengths [B], the cache, cross keys and values -> logits [B, V], then the updated cache.

    `lengths` counts the tokens that the cache already holds, which is the position of this token.
    """

    def __init__(self, decoder: WhisperDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_B1: Tensor, lengths_B: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        half = len(state) // 2
        pasts, crosses = pair_up(state[:half]), pair_up(state[half:])
        x_B1C, pairs = self.decoder(token_ids_B1, lengths_B[:, None], crosses, pasts, lengths_B)
        return self.decoder.compute_logits(x_B1C.squeeze(1)), *(tensor for pair in pairs for tensor in pair)


def pair_up(tensors: tuple[Tensor, ...]) -> list[Pair]:
    """keys_0, values_0, keys_1, ... by layer."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))
