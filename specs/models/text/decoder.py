"""A decoder-only language model in the manner of Llama 2: RMSNorm, rotary positions, grouped queries, a gated MLP.

    x = x + attention(norm(x));  x = x + down(act(gate(norm(x))) * up(norm(x)));  logits = norm(x) E^T

What later families changed is an option of `DecoderComponent`, and each is one line here: biases and a window
(Mistral, Qwen 2), normalised queries and keys (Qwen 3), layers without positions (SmolLM 3), channels without (Phi 3),
scaled embeddings and norms around 1 + weight (Gemma), norms after each sub-layer and soft caps (Gemma 2), a rotation of
its own for layers with a window (Gemma 3).

`specs/models/text/causal.py` makes graphs of it. Shape letters: B batch, T tokens, H heads, K key/value heads, D head
dim, C channels, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs import ops
from specs.components import DecoderComponent
from specs.models.layers import activate
from specs.models.text.causal import Cache, CausalModel
from specs.models.text.dynamics import INLDynamics
from specs.models.text.rope import Angles, compute_angles, list_frequencies, rotate


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019); with `offset`, * (1 + weight)."""

    def __init__(self, size: int, eps: float, *, offset: bool = False) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        weight = 1.0 + self.weight if self.offset else self.weight
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * weight


def make_norm(config: DecoderComponent, size: int) -> RmsNorm:
    """A norm with the model's epsilon and offset."""
    return RmsNorm(size, config.rms_norm_eps, offset=config.norm_offset)


class GroupedQueryAttention(nn.Module):
    """Attention in which each key/value head serves several query heads (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderComponent, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_width
        self.scale = config.attention_scale or self.head_dim**-0.5
        self.window, self.softcap = config.window_of(layer), config.attention_softcap or 0.0
        width, kv_width = config.num_heads * self.head_dim, config.kv_heads * self.head_dim
        self.query = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.out = nn.Linear(width, config.hidden_size, bias=config.out_bias)
        self.query_norm = make_norm(config, self.head_dim) if config.qk_norm else None
        self.key_norm = make_norm(config, self.head_dim) if config.qk_norm else None

    def _split_heads(self, x_BTC: Tensor, norm: RmsNorm | None = None) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        x_BTHD = x_BTC.reshape(batch, tokens, -1, self.head_dim)
        return (x_BTHD if norm is None else norm(x_BTHD)).transpose(1, 2)

    def forward(
        self, x_BTC: Tensor, angles: Angles | None, past: Cache | None, start_B: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """Attend over the prompt itself (no `past`), or over a cache that holds `start_B` tokens of each row."""
        q_BHTD = self._split_heads(self.query(x_BTC), self.query_norm)
        k_BKTD = self._split_heads(self.key(x_BTC), self.key_norm)
        v_BKTD = self._split_heads(self.value(x_BTC))
        if angles is not None:
            q_BHTD, k_BKTD = rotate(q_BHTD, angles), rotate(k_BKTD, angles)
        cache: Cache
        if past is None or start_B is None:
            mixed_BHTD = ops.attention(
                q_BHTD, k_BKTD, v_BKTD, scale=self.scale, causal=True, window=self.window, softcap=self.softcap
            )
            cache = k_BKTD, v_BKTD
        else:
            mixed_BHTD, *cache = ops.cached_attention(  # type: ignore[assignment]  # two of three
                q_BHTD, k_BKTD, v_BKTD, *past, start_B, scale=self.scale, window=self.window, softcap=self.softcap
            )
        return self.out(mixed_BHTD.transpose(1, 2).flatten(2)), cache


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x)): SwiGLU with silu, GEGLU with gelu (Shazeer 2020)."""

    def __init__(self, config: DecoderComponent) -> None:
        super().__init__()
        self.activation, self.biased = config.activation, config.mlp_bias
        self.gate = nn.Linear(config.hidden_size, config.mlp_size, bias=config.mlp_bias)
        self.up = nn.Linear(config.hidden_size, config.mlp_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.mlp_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.activation in ("silu", "gelu", "gelu_tanh") and not self.biased:
            gated_BTF = ops.gated_linear(x_BTC, self.gate.weight, self.up.weight, activation=self.activation)
        else:
            gated_BTF = activate(self.gate(x_BTC), self.activation) * self.up(x_BTC)
        out_BTC: Tensor = self.down(gated_BTF)
        return out_BTC


class DecoderLayer(nn.Module):
    """One pre-norm layer; with `post_norms`, what each half adds is normalised too."""

    def __init__(self, config: DecoderComponent, layer: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention_norm = make_norm(config, size)
        self.attention = GroupedQueryAttention(config, layer)
        self.mlp_norm = make_norm(config, size)
        self.mlp = GatedMlp(config)
        self.attention_out_norm = make_norm(config, size) if config.post_norms else None
        self.mlp_out_norm = make_norm(config, size) if config.post_norms else None

    def forward(
        self, x_BTC: Tensor, angles: Angles | None, past: Cache | None, start_B: Tensor | None
    ) -> tuple[Tensor, Cache]:
        mixed_BTC, cache = self.attention(self.attention_norm(x_BTC), angles, past, start_B)
        x_BTC = x_BTC + (mixed_BTC if self.attention_out_norm is None else self.attention_out_norm(mixed_BTC))
        added_BTC = self.mlp(self.mlp_norm(x_BTC))
        return x_BTC + (added_BTC if self.mlp_out_norm is None else self.mlp_out_norm(added_BTC)), cache


class Decoder(CausalModel):
    """`text.decoder`."""

    def __init__(self, config: DecoderComponent) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_layers))
        self.output_norm = make_norm(config, config.hidden_size)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.frequencies = list_frequencies(config.rope_theta, config.rotary_width, config.rope_scaling)
        pull = config.dynamics
        self.dynamics = INLDynamics(config.hidden_size, pull.beta_max, dt=pull.dt) if pull else None
        near_theta = config.window_rope_theta
        self.near_frequencies = list_frequencies(near_theta, config.rotary_width) if near_theta else None

    def embed(self, token_ids_BT: Tensor) -> Tensor:
        x_BTC: Tensor = self.token_embedding(token_ids_BT)
        return x_BTC * self.config.embedding_scale if self.config.embedding_scale else x_BTC

    def forward(
        self, x_BTC: Tensor, position_BT: Tensor, pasts: list[Cache] | None = None, start_B: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        angles = self._compute_angles(position_BT, x_BTC.dtype)
        caches = []
        for index, layer in enumerate(self.layers):
            x_BTC, cache = layer(x_BTC, angles[index], None if pasts is None else pasts[index], start_B)
            caches.append(cache)
        return x_BTC, caches

    def _compute_angles(self, position_BT: Tensor, dtype: torch.dtype) -> list[Angles | None]:
        """Each layer's; layers of one kind share them."""
        config = self.config
        factor = getattr(config.rope_scaling, "attention_factor", 1.0)
        plain = near = compute_angles(position_BT, self.frequencies, dtype, factor=factor)
        if self.near_frequencies:
            near = compute_angles(position_BT, self.near_frequencies, dtype)
        by_window = [near if config.window_of(layer) else plain for layer in range(config.num_layers)]
        return [None if layer in config.nope_layers else angles for layer, angles in enumerate(by_window)]

    def compute_logits(self, x_BC: Tensor) -> Tensor:
        weight_VC = self.token_embedding.weight if self.head is None else self.head.weight
        logits_BV = nn.functional.linear(self.output_norm(self._pull(x_BC)), weight_VC)
        softcap = self.config.logit_softcap
        return (logits_BV / softcap).tanh() * softcap if softcap else logits_BV

    def _pull(self, x_BC: Tensor) -> Tensor:
        """Some steps of the dynamics from rest, where the model has them."""
        velocity_BC = None
        for _ in range(self.config.dynamics.num_steps if self.config.dynamics else 0):
            assert self.dynamics is not None
            x_BC, velocity_BC = self.dynamics(x_BC, velocity_BC)
        return x_BC
