"""CLIP's text tower as a condition of diffusion: states of every token instead of one feature.

Shape letters: B batch, T tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from specs.models.text.clip import ClipText


class LastStates(nn.Module):
    """token ids [B, T] -> the last layer's states, normalised, [B, T, C] (Stable Diffusion 1 and 2)."""

    def __init__(self, tower: ClipText) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        states_BTC: Tensor = self.tower.output_norm(self.tower.forward_features(token_ids_BT))
        return states_BTC


class PenultimateStates(nn.Module):
    """token ids [B, T] -> states before the last layer, as they are, [B, T, C] (SDXL)."""

    def __init__(self, tower: ClipText) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        return self.tower.forward_features(token_ids_BT, layer=-2)


class PenultimateStatesAndEmbedding(nn.Module):
    """`PenultimateStates`, and the pooled and projected text [B, feature size] that the last layer leads to."""

    def __init__(self, tower: ClipText) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, token_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        states_BTC = self.tower.forward_features(token_ids_BT, layer=-2)
        return states_BTC, self.tower.pool(self.tower.layers[-1](states_BTC), token_ids_BT)
