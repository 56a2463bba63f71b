"""Fusions of any set of modalities, of which any may be missing in any row.

    tokens_m --Where(visible)--> Linear + vector of the modality --> strategy --> norm --> [head]

What is not visible (its modality is missing in this row, or it lies beyond the row's length) becomes 0 before anything
is computed with it, and no softmax, mean or sum counts it: a row is what the same weights give without the modality.
A strategy gets every modality's tokens and which of them are visible, and returns one vector a row, and the weights
that its line in `STRATEGIES` promises. STRATEGY_MODULES has them by name; `register_strategy` adds a user's own.

Shape letters: B batch, M modalities, T tokens of one modality (S: of the others), C hidden size, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components.fusion.multimodal import MultimodalFusionComponent, Stream
from specs.models.fusion.resampling import AttentionTo
from specs.models.layers import Mlp


class Seen(NamedTuple):
    """One modality, as a strategy gets it."""

    tokens: Tensor  # [B, T, C]; the modality's own vector where nothing is visible
    visible: Tensor  # [B, T], bool
    presence: Tensor  # [B], bool


class Fused(NamedTuple):
    """What a strategy returns: one vector a row, and its weights in the order of its line in STRATEGIES."""

    features: Tensor  # [B, C]
    weights: tuple[Tensor, ...] = ()


def make_bias(visible_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, S], 0 at visible keys, else the lowest number there is."""
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(visible_BS, torch.zeros((), dtype=dtype), lowest)[:, None, None, :]


def hide_weights(weights_BHTS: Tensor, rows_BT: Tensor, columns_BS: Tensor) -> Tensor:
    """0 where a row or a column is not visible: what a softmax over nothing says means nothing."""
    visible_B1TS = rows_BT[:, None, :, None] & columns_BS[:, None, None, :]
    return torch.where(visible_B1TS, weights_BHTS, torch.zeros((), dtype=weights_BHTS.dtype))


def pool_tokens(one: Seen) -> Tensor:
    """The mean over the visible tokens of each row, [B, C]; 0 where there are none."""
    share_BT1 = one.visible[:, :, None].to(one.tokens.dtype)
    total_BC = (one.tokens * share_BT1).sum(dim=1)
    return total_BC / share_BT1.sum(dim=1).clamp(min=1)


class FusionLayer(nn.Module):
    """x + attention(norm(x)) over what is visible; x + mlp(norm(x))."""

    def __init__(self, config: MultimodalFusionComponent, *, temperature: float = 1.0) -> None:
        super().__init__()
        assert config.num_heads, "the family has asked for it"
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = AttentionTo(width, config.num_heads, temperature=temperature)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, config.mlp_width, "gelu")

    def forward(self, x_BTC: Tensor, bias_B11T: Tensor) -> Tensor:
        normed_BTC = self.attention_norm(x_BTC)
        x_BTC = x_BTC + self.attention(normed_BTC, normed_BTC, bias_B11T)
        out_BTC: Tensor = x_BTC + self.mlp(self.mlp_norm(x_BTC))
        return out_BTC

    def compute_weights(self, x_BTC: Tensor, bias_B11T: Tensor) -> Tensor:
        """What `forward` looks at, [B, H, T, T]."""
        normed_BTC = self.attention_norm(x_BTC)
        return self.attention.compute_weights(normed_BTC, normed_BTC, bias_B11T)


class EarlyFusion(nn.Module):
    """All tokens behind a class token, through shared layers; the class token is the answer (ViLT; Kim et al. 2021)."""

    def __init__(self, config: MultimodalFusionComponent, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.config = config
        self.class_token = nn.Parameter(torch.empty(config.hidden_size))
        self.layers = nn.ModuleList(
            FusionLayer(config, temperature=config.temperature) for _ in range(config.num_layers or 0)
        )

    def forward(self, seen: Sequence[Seen]) -> Fused:
        batch = seen[0].tokens.shape[0]
        x_BTC = torch.cat([self.class_token.expand(batch, 1, -1), *(one.tokens for one in seen)], dim=1)
        always_B1 = torch.ones_like(seen[0].visible[:, :1])
        visible_BT = torch.cat([always_B1, *(one.visible for one in seen)], dim=1)
        bias_B11T = make_bias(visible_BT, x_BTC.dtype)
        weights: tuple[Tensor, ...] = ()
        for number, layer in enumerate(self.layers, 1):
            assert isinstance(layer, FusionLayer)
            if self.config.export_weights and number == len(self.layers):
                weights = (hide_weights(layer.compute_weights(x_BTC, bias_B11T), visible_BT, visible_BT),)
            x_BTC = layer(x_BTC, bias_B11T)
        return Fused(x_BTC[:, 0], weights)


class Exchange(nn.Module):
    """Each modality looks at the tokens of the others: x + attention(norm(x), norm(others)) (LXMERT; Tan 2019)."""

    def __init__(self, config: MultimodalFusionComponent) -> None:
        super().__init__()
        assert config.num_heads, "the family has asked for it"
        width, eps = config.hidden_size, config.layer_norm_eps
        self.query_norm = nn.LayerNorm(width, eps=eps)
        self.context_norm = nn.LayerNorm(width, eps=eps)
        self.attention = AttentionTo(width, config.num_heads, temperature=config.temperature)

    def forward(self, x_BTC: Tensor, others_BSC: Tensor, visible_BS: Tensor) -> Tensor:
        bias = make_bias(visible_BS, x_BTC.dtype)
        looked_BTC = self.attention(self.query_norm(x_BTC), self.context_norm(others_BSC), bias)
        # where no other modality is present there is nothing to look at
        anything_B11 = visible_BS.any(dim=1)[:, None, None]
        return x_BTC + torch.where(anything_B11, looked_BTC, torch.zeros((), dtype=x_BTC.dtype))

    def compute_weights(self, x_BTC: Tensor, others_BSC: Tensor, visible_BS: Tensor) -> Tensor:
        """What `forward` looks at, [B, H, T, S]."""
        bias = make_bias(visible_BS, x_BTC.dtype)
        return self.attention.compute_weights(self.query_norm(x_BTC), self.context_norm(others_BSC), bias)


class MiddleFusion(nn.Module):
    """Layers of each modality's own, with exchanges between; the mean of the modalities that are present."""

    def __init__(self, config: MultimodalFusionComponent, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.config = config
        count = config.num_layers or 0
        self.layers = nn.ModuleList(
            nn.ModuleList(FusionLayer(config) for _ in range(count)) for _ in range(len(streams))
        )
        self.exchanges = nn.ModuleList(
            nn.ModuleList(Exchange(config) for _ in config.exchanges) for _ in range(len(streams))
        )

    def forward(self, seen: Sequence[Seen]) -> Fused:
        states, weights = [one.tokens for one in seen], list[Tensor]()
        for index in range(self.config.num_layers or 0):
            states = [
                layers[index](x_BTC, make_bias(one.visible, x_BTC.dtype))  # type: ignore[index]
                for layers, x_BTC, one in zip(self.layers, states, seen, strict=True)
            ]
            if index + 1 in self.config.exchanges and len(seen) > 1:
                number = self.config.exchanges.index(index + 1)
                if self.config.export_weights and number == len(self.config.exchanges) - 1:
                    weights = [self._weigh(states, seen, m, self._choose(m, number)) for m in range(len(seen))]
                states = [
                    self._choose(m, number)(states[m], *self._list_others(states, seen, m)) for m in range(len(seen))
                ]
        pooled_BMC = torch.stack(
            [pool_tokens(one._replace(tokens=x_BTC)) for x_BTC, one in zip(states, seen, strict=True)], dim=1
        )
        present_BM1 = torch.stack([one.presence for one in seen], dim=1)[:, :, None].to(pooled_BMC.dtype)
        return Fused((pooled_BMC * present_BM1).sum(dim=1) / present_BM1.sum(dim=1).clamp(min=1), tuple(weights))

    def _weigh(self, states: Sequence[Tensor], seen: Sequence[Seen], modality: int, exchange: Exchange) -> Tensor:
        """What one modality looks at in an exchange."""
        others_BSC, visible_BS = self._list_others(states, seen, modality)
        weights_BHTS = exchange.compute_weights(states[modality], others_BSC, visible_BS)
        return hide_weights(weights_BHTS, seen[modality].visible, visible_BS)

    def _choose(self, modality: int, number: int) -> Exchange:
        chosen = self.exchanges[modality][number]  # type: ignore[index]
        assert isinstance(chosen, Exchange)
        return chosen

    def _list_others(self, states: Sequence[Tensor], seen: Sequence[Seen], modality: int) -> tuple[Tensor, Tensor]:
        """Tokens and visibility of all modalities but one."""
        others = [m for m in range(len(seen)) if m != modality]
        return torch.cat([states[m] for m in others], dim=1), torch.cat([seen[m].visible for m in others], dim=1)


class LateFusion(nn.Module):
    """The modalities' means side by side, through Linear, GELU and Linear; a missing one leaves a gap of zeros."""

    def __init__(self, config: MultimodalFusionComponent, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.join = nn.Linear(len(streams) * config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, seen: Sequence[Seen]) -> Fused:
        joined_BC = self.join(torch.cat([pool_tokens(one) for one in seen], dim=-1))
        return Fused(self.out(functional.gelu(joined_BC)))


class AttentionFusion(nn.Module):
    """Softmax weights over the modalities that are present, from a learned query; `ops.modality_fusion`."""

    def __init__(self, config: MultimodalFusionComponent, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, seen: Sequence[Seen]) -> Fused:
        features_BMC = torch.stack([pool_tokens(one) for one in seen], dim=1)
        presence_BM = torch.stack([one.presence for one in seen], dim=1)
        fused_BC, weights_BM = ops.modality_fusion(
            features_BMC, self.query, presence_BM, temperature=self.config.temperature
        )
        return Fused(fused_BC, (weights_BM,) if self.config.export_weights else ())


#: name -> module, built from (config, streams), called with the modalities; `register_strategy` adds a user's own.
STRATEGY_MODULES: dict[str, type[nn.Module]] = {
    "early": EarlyFusion,
    "middle": MiddleFusion,
    "late": LateFusion,
    "attention": AttentionFusion,
}


class MultimodalFusion(nn.Module):
    """Each modality's tokens (and lengths where they vary), presence [B, M] -> logits or embedding, and weights."""

    def __init__(self, config: MultimodalFusionComponent, streams: Sequence[Stream]) -> None:
        super().__init__()
        width = config.hidden_size
        self.streams = tuple(streams)
        self.projections = nn.ModuleList(nn.Linear(stream.width, width) for stream in streams)
        self.modality_embedding = nn.Parameter(torch.empty(len(self.streams), width))
        self.strategy = STRATEGY_MODULES[config.strategy](config, self.streams)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None

    def look(self, tensors: Sequence[Tensor], presence_BM: Tensor) -> list[Seen]:
        """Every modality in the common width, and what of it is visible."""
        seen, rest = [], list(tensors)
        for index, stream in enumerate(self.streams):
            tokens_BTC, presence_B = rest.pop(0), presence_BM[:, index]
            visible_BT = presence_B[:, None].expand(-1, stream.tokens)
            if stream.has_lengths:
                position_T = torch.arange(stream.tokens, device=presence_BM.device)
                visible_BT = visible_BT & (position_T < rest.pop(0)[:, None])
            safe_BTC = torch.where(visible_BT[:, :, None], tokens_BTC, torch.zeros((), dtype=tokens_BTC.dtype))
            mapped_BTC = self.projections[index](safe_BTC) + self.modality_embedding[index]
            seen.append(Seen(mapped_BTC, visible_BT, presence_B))
        assert not rest, "a tensor that belongs to no modality"
        return seen

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        fused = self.strategy(self.look(tensors[:-1], tensors[-1]))
        answer: Tensor = self.output_norm(fused.features)
        return (answer if self.head is None else self.head(answer), *fused.weights)
