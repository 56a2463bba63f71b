"""Components whose parameters and multiply-accumulates come from one walk through their layers."""

from __future__ import annotations

from specs.components.base import Component
from specs.components.costs import Cost


class MeasuredComponent(Component):
    """Counts what `measure` finds."""

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        raise NotImplementedError

    def count_parameters(self) -> int:
        return self.measure().parameters

    def count_macs(self, tokens: int) -> int:
        return self.measure().macs
