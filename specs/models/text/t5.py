"""T5's text encoder (Raffel et al. 2020).

    x = x + attention(norm(x)) with a bias for each distance;  x = x + mlp(norm(x));  states = norm(x)

Rows are padded on the right; what lies beyond a row's length is seen by nobody. Scores are not scaled. The bias of a
distance belongs to a bucket: small distances have one each, larger ones share theirs in steps of a logarithm.

Seeded weights start as T5's own do, in Mesh TensorFlow (`fold_scaling_into_initializer`) and in transformers
(`T5PreTrainedModel._init_weights`, the same for mT5 and umT5): queries C^-1/2 D^-1/2, which stands for the division of
scores by sqrt(D), embeddings 1, biases of distances C^-1/2; all others by their fan in, as everywhere.

Shape letters: B batch, T tokens, S keys (= T), H heads, D head dim, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from specs import ops
from specs.components.text.t5 import T5Component
from specs.models.layers import activate
from specs.models.seeding import SeededModule
from specs.models.text.decoder import RmsNorm
from specs.models.text.distance import list_buckets
from specs.models.text.encoder import EmbeddingHead


class T5Attention(SeededModule):
    """Unscaled attention without biases of its own, over `bias` [B, H, T, S]."""

    def __init__(self, config: T5Component) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        self.out = nn.Linear(config.inner_size, config.hidden_size, bias=False)

    def list_initial_stds(self) -> Mapping[str, float]:
        return {"query.weight": (self.query.in_features * self.head_dim) ** -0.5}

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        return x_BTC.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2)

    def forward(self, x_BTC: Tensor, bias_BHTS: Tensor) -> Tensor:
        q_BHTD, k_BHSD, v_BHSD = (self._split_heads(part(x_BTC)) for part in (self.query, self.key, self.value))
        mixed_BHTD = ops.attention(q_BHTD, k_BHSD, v_BHSD, bias_BHTS, scale=1.0)
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC


class T5Mlp(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) up(x))."""

    def __init__(self, config: T5Component) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = nn.Linear(config.hidden_size, config.mlp_size, bias=False) if config.gated else None
        self.up = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.gate is None:
            inner_BTF = activate(self.up(x_BTC), self.activation)
        elif self.activation in ("silu", "gelu", "gelu_tanh"):
            inner_BTF = ops.gated_linear(x_BTC, self.gate.weight, self.up.weight, activation=self.activation)
        else:
            inner_BTF = activate(self.gate(x_BTC), self.activation) * self.up(x_BTC)
        out_BTC: Tensor = self.down(inner_BTF)
        return out_BTC


class T5Layer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: T5Component) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = T5Attention(config)
        self.mlp_norm = RmsNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = T5Mlp(config)

    def forward(self, x_BTC: Tensor, bias_BHTS: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), bias_BHTS)
        out_BTC: Tensor = x_BTC + self.mlp(self.mlp_norm(x_BTC))
        return out_BTC


class T5Encoder(SeededModule):
    """token_ids [B, T], lengths [B] -> states [B, T, C]."""

    def __init__(self, config: T5Component) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.buckets = list_buckets(config.num_buckets, config.max_distance)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.distance_embedding = nn.Embedding(config.num_buckets, config.num_heads)  # layers share it
        later = config.num_layers - 1 if config.own_bias else 0
        self.distance_embeddings = nn.ModuleList(
            nn.Embedding(config.num_buckets, config.num_heads) for _ in range(later)
        )
        self.layers = nn.ModuleList(T5Layer(config) for _ in range(config.num_layers))
        self.output_norm = RmsNorm(config.hidden_size, config.layer_norm_eps)
        self.embedding_head = None if config.pooling == "none" else EmbeddingHead(config)

    def list_initial_stds(self) -> Mapping[str, float]:
        stds = {
            name: self.token_embedding.embedding_dim**-0.5 for name, _ in self.named_parameters() if "distance" in name
        }
        return {"token_embedding.weight": 1.0, **stds}

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        x_BTC: Tensor = self.token_embedding(token_ids_BT)
        bias_BHTS = self.compute_bias(token_ids_BT.shape[1], lengths_B, x_BTC.dtype, self.distance_embedding)
        for index, layer in enumerate(self.layers):
            if index and self.distance_embeddings:
                own = self.distance_embeddings[index - 1]
                bias_BHTS = self.compute_bias(token_ids_BT.shape[1], lengths_B, x_BTC.dtype, own)
            x_BTC = layer(x_BTC, bias_BHTS)
        states_BTC: Tensor = self.output_norm(x_BTC)
        return states_BTC

    def compute_bias(self, tokens: int, lengths_B: Tensor, dtype: torch.dtype, embedding: nn.Module) -> Tensor:
        """[B, H, T, S]: the bias of each distance, and the lowest number where a key is padding."""
        position_T = torch.arange(tokens, device=lengths_B.device)
        offset_TS = position_T[None, :] - position_T[:, None]
        place_TS = offset_TS.clamp(-self.max_distance, self.max_distance) + self.max_distance
        bucket_TS = torch.tensor(self.buckets)[place_TS]
        bias_HTS = embedding(bucket_TS).permute(2, 0, 1)
        visible_B11S = (position_T[None, :] < lengths_B[:, None])[:, None, None, :]
        return torch.where(visible_B11S, bias_HTS, torch.finfo(dtype).min)
