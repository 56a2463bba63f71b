"""The pre-norm transformer layer that the vision and CLIP towers share.

    x = x + attention(norm(x));  x = x + mlp(norm(x))            each sum scaled per channel where layers scale

Shape letters: B batch, T sequence, H heads, D head dim, C channels.

Query, key and value come from one Linear (`qkv`, rows in the order q, k, v): one GEMM instead of three. No dropout:
these modules are for inference, and `examples/train_digits.py` shows that a small one trains without.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components import Activation


class SelfAttention(nn.Module):
    """Multi-head attention over one sequence, with biases (Vaswani et al. 2017)."""

    def __init__(self, hidden_size: int, num_heads: int, *, causal: bool, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.causal = num_heads, hidden_size // num_heads, causal
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.out = nn.Linear(hidden_size, hidden_size)

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        # T is static in every tower, so -1 keeps shape arithmetic out of the exported graph
        return x_BTC.reshape(-1, x_BTC.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = (self._split_heads(part) for part in self.qkv(x_BTC).chunk(3, dim=-1))
        mixed_BHTD = ops.attention(q_BHTD, k_BHTD, v_BHTD, scale=self.head_dim**-0.5, causal=self.causal)
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC


class Mlp(nn.Module):
    """Two Linears around an activation."""

    def __init__(self, hidden_size: int, mlp_size: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(hidden_size, mlp_size)
        self.down = nn.Linear(mlp_size, hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        out_BTC: Tensor = self.down(activate(self.up(x_BTC), self.activation))
        return out_BTC


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        mlp_size: int,
        activation: Activation,
        eps: float,
        causal: bool,
        qkv_bias: bool = True,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.attention = SelfAttention(hidden_size, num_heads, causal=causal, qkv_bias=qkv_bias)
        self.attention_scale = nn.Parameter(torch.empty(hidden_size)) if layer_scale else None
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = Mlp(hidden_size, mlp_size, activation)
        self.mlp_scale = nn.Parameter(torch.empty(hidden_size)) if layer_scale else None

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + _scale(self.attention(self.attention_norm(x_BTC)), self.attention_scale)
        return x_BTC + _scale(self.mlp(self.mlp_norm(x_BTC)), self.mlp_scale)


def _scale(x_BTC: Tensor, scale_C: Tensor | None) -> Tensor:
    return x_BTC if scale_C is None else x_BTC * scale_C


#: Activations that are one function of torch; the others are GELUs.
_PLAIN = {"relu": torch.relu, "silu": functional.silu, "tanh": torch.tanh}


def activate(x: Tensor, activation: Activation) -> Tensor:
    """What the name says; `gelu_tanh` is at most 4.73e-4 away from `gelu`, `quick_gelu` is x sigmoid(1.702 x)."""
    if activation in _PLAIN:
        return _PLAIN[activation](x)
    if activation == "quick_gelu":
        return x * (1.702 * x).sigmoid()
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
