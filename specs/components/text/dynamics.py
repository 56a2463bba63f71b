"""INL dynamics behind a decoder's layers: `specs/models/text/dynamics.py` has the equation and its bound."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from specs.components.base import Positive

#: Of dt * beta_max: beyond it a step could grow without end.
STABILITY_BOUND = 2.0


class DynamicsSettings(BaseModel):
    """How often and how hard the hidden state is drawn to its place before the logits are computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta_max: Positive = Field(default=2.0, description="the hardest pull")
    dt: Positive = Field(default=1.0, description="the step")
    num_steps: Annotated[int, Field(ge=1, le=16)] = Field(default=1, description="steps from rest, weights shared")

    @model_validator(mode="after")
    def _check_bound(self) -> DynamicsSettings:
        if self.dt * self.beta_max > STABILITY_BOUND:
            raise ValueError(
                f"dt * beta_max {self.dt * self.beta_max:g} is above {STABILITY_BOUND:g},"
                " where steps can grow without end"
            )
        return self

    def count_parameters(self, hidden_size: int) -> int:
        """Where the state is drawn to, and the controller's Linear."""
        return hidden_size + (2 * hidden_size + 1) * 3 * hidden_size
