"""Seeded weights, which keep activations near unit variance.

Linear rows are normal with std 1/sqrt(fan in), cut at two sigma. Norm scales and biases are drawn too, around 1 and 0,
so that a graph that lost one is a graph with wrong numbers. A module whose publication starts otherwise says so
(`specs/models/seeding.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from specs.parameters.mapped import drop_tensor, lies_in_file, split_tensor
from specs.parameters.source import StoredTensor
from specs.system.pages import CHUNK_BYTES

_DRAWN_AT_ONCE = 16 << 20  # elements; a multiple of 16, in which torch draws: pieces then equal the whole


@final
class RandomParameters:
    """Seeded values for every parameter of `expected`, drawn in float32 and rounded to `dtype`.

    Args:
        stds: standard deviations of some; the rest have them by name and shape.
    """

    where = "random weights"

    def __init__(
        self,
        expected: Mapping[str, Tensor],
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        stds: Mapping[str, float] | None = None,
    ) -> None:
        self._expected, self._dtype, self._stds = expected, dtype, stds or {}
        self._generator = torch.Generator().manual_seed(seed)

    def list_tensors(self) -> Mapping[str, StoredTensor]:
        return {
            name: StoredTensor(shape=tuple(like.shape), dtype=self._dtype, mapped=False, origin=f"random '{name}'")
            for name, like in self._expected.items()
        }

    def read(self, name: str) -> Tensor:
        raise AssertionError(f"'{name}' is generated, not mapped")

    def fill(self, name: str, out: Tensor) -> None:
        """Values depend on the order of the calls, which is the order of the model's parameters."""
        mean, std = _choose_distribution(name, out)
        std = self._stds.get(name, std)
        in_file = out.nbytes >= CHUNK_BYTES and lies_in_file(out)
        for piece in split_tensor(out, elements=_DRAWN_AT_ONCE):
            drawn = piece if piece.dtype == torch.float32 else torch.empty(piece.shape)
            drawn.normal_(mean, std, generator=self._generator) if std else drawn.fill_(mean)
            piece.copy_(drawn.clamp_(mean - 2 * std, mean + 2 * std))
            if in_file:
                drop_tensor(piece)


def _choose_distribution(name: str, like: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of one parameter; 0 for a constant."""
    leaf = name.rpartition(".")[2]
    if leaf == "logit_scale":
        return math.log(1 / 0.07), 0.0  # where CLIP's training starts
    if leaf == "logit_bias":
        return -10.0, 0.0  # where SigLIP's does
    mean, std = 0.0, 0.02
    if leaf in ("class_token", "query") or "embedding" in name.split(".")[-2] or leaf == "position_embedding":
        std = 0.1
    if like.dim() > 1 and "token_embedding" not in name and leaf != "position_embedding":
        std = like[0].numel() ** -0.5
    elif ("norm" in name and leaf in ("weight", "variance")) or leaf in ("attention_scale", "mlp_scale"):
        mean = 1.0
    elif leaf == "bias":
        std = 0.02
    return mean, std
