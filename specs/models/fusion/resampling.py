"""Attention between sequences: one that looks at another, and latents that look at all.

    CrossAttention    x = x + attention(norm(x), norm(context))
    Perceiver         latents = latents + attention(norm(latents), [norm(x); norm(latents)]); an MLP; layer by layer

The perceiver is Flamingo's resampler (Alayrac et al. 2022), after Perceiver (Jaegle et al. 2021): whatever the length
of its input, its output has `num_latents` tokens.

Shape letters: B batch, T queries, S context (places), N latents, H heads, D head dim, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs import ops
from specs.components.fusion.resampling import CrossAttentionComponent, PerceiverComponent
from specs.models.layers import Mlp


class AttentionTo(nn.Module):
    """Multi-head attention of x [B, T, C] to a context [B, S, C], with biases (Vaswani et al. 2017)."""

    def __init__(self, hidden_size: int, num_heads: int, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.scale = self.head_dim**-0.5 / temperature
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.reshape(x_BTC.shape[0], x_BTC.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x_BTC: Tensor, context_BSC: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias` is added to the scores, and broadcasts to [B, H, T, S]."""
        k_BHSD, v_BHSD = (self._split_heads(part) for part in self.key_value(context_BSC).chunk(2, dim=-1))
        mixed_BHTD = ops.attention(self._split_heads(self.query(x_BTC)), k_BHSD, v_BHSD, bias, scale=self.scale)
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC

    def compute_weights(self, x_BTC: Tensor, context_BSC: Tensor, bias: Tensor | None = None) -> Tensor:
        """How much each query looks at each place of the context, [B, H, T, S]; rows sum to 1."""
        k_BHSD = self._split_heads(self.key_value(context_BSC).chunk(2, dim=-1)[0])
        scores_BHTS = self._split_heads(self.query(x_BTC)) * self.scale @ k_BHSD.transpose(-1, -2)
        weights_BHTS: Tensor = (scores_BHTS if bias is None else scores_BHTS + bias).softmax(-1)
        return weights_BHTS


class CrossAttention(nn.Module):
    """query [B, T, C], key_value [B, S, context size] -> query that has looked, [B, T, C]."""

    def __init__(self, config: CrossAttentionComponent) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.context = nn.Linear(config.context_size, width) if config.context_size else None
        self.query_norm = nn.LayerNorm(width, eps=eps)
        self.context_norm = nn.LayerNorm(width, eps=eps)
        self.attention = AttentionTo(width, config.num_heads, temperature=config.temperature)

    def read(self, query: Tensor, key_value: Tensor) -> tuple[Tensor, Tensor]:
        """What attention sees of both."""
        context_BSC = key_value if self.context is None else self.context(key_value)
        return self.query_norm(query), self.context_norm(context_BSC)

    def forward(self, query: Tensor, key_value: Tensor, bias: Tensor | None = None) -> Tensor:
        out_BTC: Tensor = query + self.attention(*self.read(query, key_value), bias)
        return out_BTC

    def compute_weights(self, query: Tensor, key_value: Tensor, bias: Tensor | None = None) -> Tensor:
        """The picture of what was looked at, [B, H, T, S]."""
        return self.attention.compute_weights(*self.read(query, key_value), bias)


class PerceiverLayer(nn.Module):
    """Latents look at the input and at themselves, then think."""

    def __init__(self, config: PerceiverComponent) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.input_norm = nn.LayerNorm(width, eps=eps)
        self.latent_norm = nn.LayerNorm(width, eps=eps)
        self.attention = AttentionTo(width, config.num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, config.mlp_width, "gelu")

    def forward(self, latents_BNC: Tensor, x_BSC: Tensor) -> Tensor:
        normed_BNC = self.latent_norm(latents_BNC)
        context = torch.cat([self.input_norm(x_BSC), normed_BNC], dim=1)
        latents_BNC = latents_BNC + self.attention(normed_BNC, context)
        out_BNC: Tensor = latents_BNC + self.mlp(self.mlp_norm(latents_BNC))
        return out_BNC


class Perceiver(nn.Module):
    """Features [B, S, input size] of any length, or [B, frames, S, input size] of a film -> [B, num_latents, C].

    Frame t gets the t-th time embedding on every place; then all places of all frames are one sequence.
    """

    def __init__(self, config: PerceiverComponent) -> None:
        super().__init__()
        width = config.hidden_size
        self.frame_embedding = (
            nn.Parameter(torch.empty(config.num_frames, config.input_size or width)) if config.num_frames else None
        )
        self.input = nn.Linear(config.input_size, width) if config.input_size else None
        self.latent_embedding = nn.Parameter(torch.empty(config.num_latents, width))
        self.layers = nn.ModuleList(PerceiverLayer(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, features: Tensor) -> Tensor:
        x_BSC = features
        if self.frame_embedding is not None:
            x_BSC = (features + self.frame_embedding[:, None, :]).flatten(1, 2)
        if self.input is not None:
            x_BSC = self.input(x_BSC)
        latents_BNC = self.latent_embedding.expand(x_BSC.shape[0], -1, -1)
        for layer in self.layers:
            latents_BNC = layer(latents_BNC, x_BSC)
        out_BNC: Tensor = self.output_norm(latents_BNC)
        return out_BNC
