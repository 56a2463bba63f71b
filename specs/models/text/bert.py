"""BERT (Devlin et al. 2018), and RoBERTa, DistilBERT, MPNet and MiniLM, which differ in tables only.

    x = norm(token + position + segment);  x = norm(x + attention(x));  x = norm(x + mlp(x))

Shape letters: B batch, T tokens, H heads, D head dim, C channels.

A text is one segment: every token gets the vector of segment 0. The position table begins at the first position that a
text has (RoBERTa's has two rows before it, which nothing reads).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs import ops
from specs.components import BertComponent
from specs.models.layers import Mlp
from specs.models.text.encoder import DistanceBias, EmbeddingHead, make_padding_bias

_FARTHEST = 128  # of MPNet's distances


class BertAttention(nn.Module):
    """Multi-head attention with biases; what `bias` hides is not seen."""

    def __init__(self, config: BertComponent) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim = config.num_heads, width // config.num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTC: Tensor, bias_BHTS: Tensor) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        q_BHTD, k_BHTD, v_BHTD = (
            part.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x_BTC).chunk(3, dim=-1)
        )
        mixed_BHTD = ops.attention(q_BHTD, k_BHTD, v_BHTD, bias_BHTS, scale=self.head_dim**-0.5)
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC


class BertLayer(nn.Module):
    """One post-norm layer."""

    def __init__(self, config: BertComponent) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.mlp_size, config.activation)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BTC: Tensor, bias_BHTS: Tensor) -> Tensor:
        x_BTC = self.attention_norm(x_BTC + self.attention(x_BTC, bias_BHTS))
        out_BTC: Tensor = self.mlp_norm(x_BTC + self.mlp(x_BTC))
        return out_BTC


class Bert(nn.Module):
    """token ids [B, T], lengths [B] -> token features [B, T, C]; those of padding mean nothing."""

    def __init__(self, config: BertComponent) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.segment_embedding = nn.Parameter(torch.empty(width)) if config.token_type else None
        self.input_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.distance_bias = (
            DistanceBias(config.relative_buckets, _FARTHEST, config.num_heads) if config.relative_buckets else None
        )
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_layers))
        self.embedding_head = None if config.pooling == "none" else EmbeddingHead(config)

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        tokens = token_ids_BT.shape[1]
        x_BTC: Tensor = self.token_embedding(token_ids_BT)
        if self.segment_embedding is not None:
            x_BTC = x_BTC + self.segment_embedding
        x_BTC = self.input_norm(x_BTC + self.position_embedding[:tokens])
        bias_BHTS = make_padding_bias(lengths_B, tokens, x_BTC.dtype)
        if self.distance_bias is not None:
            bias_BHTS = self.distance_bias(tokens) + bias_BHTS
        for layer in self.layers:
            x_BTC = layer(x_BTC, bias_BHTS)
        return x_BTC
