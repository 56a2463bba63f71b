"""GPT-2 (Radford et al. 2019): learned positions, pre-norm layers with biases, the embedding as the head.

    x = E[token] + P[position];  x = x + attention(norm(x));  x = x + mlp(norm(x));  logits = norm(x) E^T

`specs/models/text/causal.py` makes graphs of it. Shape letters: B batch, T tokens, S cache slots, H heads, D head dim,
C channels, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from specs import ops
from specs.components import Gpt2Component
from specs.models.layers import Mlp
from specs.models.text.causal import Cache, CausalModel
from specs.models.text.rope import Angles, rotate


class CachedSelfAttention(nn.Module):
    """Multi-head attention, causal or over a cache; query, key and value come from one Linear."""

    def __init__(self, hidden_size: int, num_heads: int, *, scale: float, bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = num_heads, hidden_size // num_heads, scale
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.out = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(
        self, x_BTC: Tensor, past: Cache | None, start_B: Tensor | None, angles: Angles | None = None
    ) -> tuple[Tensor, Cache]:
        """Attend over the prompt itself (no `past`), or over a cache that holds `start_B` tokens of each row."""
        batch, tokens, _ = x_BTC.shape
        q_BHTD, k_BHTD, v_BHTD = (
            part.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x_BTC).chunk(3, dim=-1)
        )
        if angles is not None:
            q_BHTD, k_BHTD = rotate(q_BHTD, angles), rotate(k_BHTD, angles)
        if past is None or start_B is None:
            mixed_BHTD = ops.attention(q_BHTD, k_BHTD, v_BHTD, scale=self.scale, causal=True)
        else:
            mixed_BHTD, k_BHTD, v_BHTD = ops.cached_attention(q_BHTD, k_BHTD, v_BHTD, *past, start_B, scale=self.scale)
        return self.out(mixed_BHTD.transpose(1, 2).flatten(2)), (k_BHTD, v_BHTD)


class Gpt2Layer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: Gpt2Component, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        scale = config.head_width**-0.5 if config.scale_attention else 1.0
        scale /= layer + 1 if config.scale_by_layer else 1
        self.attention = CachedSelfAttention(config.hidden_size, config.num_heads, scale=scale)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.mlp_width, config.activation)

    def forward(self, x_BTC: Tensor, past: Cache | None, start_B: Tensor | None) -> tuple[Tensor, Cache]:
        mixed_BTC, cache = self.attention(self.attention_norm(x_BTC), past, start_B)
        x_BTC = x_BTC + mixed_BTC
        return x_BTC + self.mlp(self.mlp_norm(x_BTC)), cache


class Gpt2(CausalModel):
    """`text.gpt2`."""

    def __init__(self, config: Gpt2Component) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size)
        self.layers = nn.ModuleList(Gpt2Layer(config, layer) for layer in range(config.num_layers))
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, token_ids_BT: Tensor) -> Tensor:
        x_BTC: Tensor = self.token_embedding(token_ids_BT)
        return x_BTC

    def forward(
        self, x_BTC: Tensor, position_BT: Tensor, pasts: list[Cache] | None = None, start_B: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        x_BTC = x_BTC + self.position_embedding(position_BT)
        caches = []
        for index, layer in enumerate(self.layers):
            x_BTC, cache = layer(x_BTC, None if pasts is None else pasts[index], start_B)
            caches.append(cache)
        return x_BTC, caches

    def compute_logits(self, x_BC: Tensor) -> Tensor:
        weight_VC = self.token_embedding.weight if self.head is None else self.head.weight
        return nn.functional.linear(self.output_norm(x_BC), weight_VC)
