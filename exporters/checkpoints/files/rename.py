"""Recipes for models whose parts have other names in the checkpoint: a table of words instead of one of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def list_parameters(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module's parameters; it is built on the meta device, without storage."""
    import torch

    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in make().named_parameters()}


def rename_all(names: Iterable[str], words: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Each name with every (pattern, replacement) applied in turn, as `re.sub` does."""
    renamed = {}
    for name in names:
        theirs = name
        for pattern, replacement in words:
            theirs = re.sub(pattern, replacement, theirs)
        renamed[name] = theirs
    return renamed
