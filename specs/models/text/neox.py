"""GPT-NeoX (Black et al. 2022), Pythia's architecture: rotary positions on a share of the channels, parallel halves.

    x = x + attention(norm(x)) + mlp(other norm(x));  logits = norm(x) W^T

`specs/models/text/causal.py` makes graphs of it. Shape letters: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from specs.components import NeoxComponent
from specs.models.layers import Mlp
from specs.models.text.causal import Cache, CausalModel
from specs.models.text.gpt2 import CachedSelfAttention
from specs.models.text.rope import Angles, compute_angles, list_frequencies


class NeoxLayer(nn.Module):
    """Both halves read the same hidden states, unless `parallel` is False: then one after the other, as in GPT-2."""

    def __init__(self, config: NeoxComponent) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.parallel = config.parallel
        self.attention_norm = nn.LayerNorm(size, eps=eps)
        self.attention = CachedSelfAttention(
            size, config.num_heads, scale=config.head_width**-0.5, bias=config.attention_bias
        )
        self.mlp_norm = nn.LayerNorm(size, eps=eps)
        self.mlp = Mlp(size, config.mlp_width, config.activation)

    def forward(
        self, x_BTC: Tensor, angles: Angles, past: Cache | None, start_B: Tensor | None
    ) -> tuple[Tensor, Cache]:
        mixed_BTC, cache = self.attention(self.attention_norm(x_BTC), past, start_B, angles)
        mixed_BTC = x_BTC + mixed_BTC
        return mixed_BTC + self.mlp(self.mlp_norm(x_BTC if self.parallel else mixed_BTC)), cache


class Neox(CausalModel):
    """`text.neox`."""

    def __init__(self, config: NeoxComponent) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(NeoxLayer(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.frequencies = list_frequencies(config.rope_theta, config.rotary_width, config.rope_scaling)

    def embed(self, token_ids_BT: Tensor) -> Tensor:
        x_BTC: Tensor = self.token_embedding(token_ids_BT)
        return x_BTC

    def forward(
        self, x_BTC: Tensor, position_BT: Tensor, pasts: list[Cache] | None = None, start_B: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        factor = getattr(self.config.rope_scaling, "attention_factor", 1.0)
        angles = compute_angles(position_BT, self.frequencies, x_BTC.dtype, factor=factor)
        caches = []
        for index, layer in enumerate(self.layers):
            x_BTC, cache = layer(x_BTC, angles, None if pasts is None else pasts[index], start_B)
            caches.append(cache)
        return x_BTC, caches

    def compute_logits(self, x_BC: Tensor) -> Tensor:
        weight_VC = self.token_embedding.weight if self.head is None else self.head.weight
        return nn.functional.linear(self.output_norm(x_BC), weight_VC)
