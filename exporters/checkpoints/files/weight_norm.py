"""Weights that a checkpoint stores as a length and a direction (weight normalisation, Salimans and Kingma 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporters.checkpoints.files.recipes import Recipe, compute, take
from exporters.checkpoints.files.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor

#: Length and direction, as torch wrote them until 2.0 and since.
_SPELLINGS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def take_normed(ours: str, theirs: str, tensors: Tensors, *, bias: bool = True) -> dict[str, Recipe]:
    """Weight and bias of a layer whose weight is stored so, in either spelling; or as it is, where it was folded."""
    recipes = {f"{ours}.bias": take(f"{theirs}.bias")} if bias else {}
    for length, direction in _SPELLINGS:
        if f"{theirs}.{length}" in tensors or f"{theirs}.{direction}" in tensors:
            weight = compute(fold_weight_norm, f"{theirs}.{length}", f"{theirs}.{direction}")
            return {f"{ours}.weight": weight, **recipes}
    return {f"{ours}.weight": take(f"{theirs}.weight"), **recipes}


def fold_weight_norm(length: Tensor, direction: Tensor) -> Tensor:
    """g v / |v|, a norm for each place that `length` has; in float64, kept as float32.

    A half-precision checkpoint keeps the two factors exactly, and their product would lose what it has.
    """
    wide = direction.double()
    axes = [axis for axis, size in enumerate(length.shape) if size == 1]
    folded: Tensor = (length.double() * wide / wide.square().sum(dim=axes, keepdim=True).sqrt()).float()
    return folded
