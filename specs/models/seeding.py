"""How a module's seeded weights start, where its publication says something else than 1 / sqrt(fan in).

Seeded weights (`specs/parameters/random.py`) keep what passes through a Linear near unit variance. A model that leaves
a division to its initialisation would be another one with them: T5 divides no score by sqrt(D), and its queries start
that much smaller.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

from torch import nn


class SeededModule(nn.Module):
    """A module that says how its own parameters are drawn."""

    @abstractmethod
    def list_initial_stds(self) -> Mapping[str, float]:
        """Standard deviation of a parameter at the start of training, by its name within this module."""


def list_initial_stds(components: Mapping[str, nn.Module]) -> dict[str, float]:
    """What the modules inside `components` say, as `<component>.<parameter>`."""
    return dict(_walk(components))


def _walk(components: Mapping[str, nn.Module]) -> Iterator[tuple[str, float]]:
    for part, model in components.items():
        for place, module in model.named_modules(prefix=part):
            if isinstance(module, SeededModule):
                for name, std in module.list_initial_stds().items():
                    yield f"{place}.{name}", std
