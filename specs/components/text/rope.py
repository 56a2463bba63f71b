"""How rotary frequencies are changed for texts longer than a model was first trained on: five published ways.

    linear     f / factor                                                   (Chen et al. 2023)
    llama3     f / factor for long wavelengths, f for short, a blend between (Llama 3.1)
    yarn       the same idea with a ramp over channels, and scaled scores    (Peng et al. 2023)
    longrope   f / factor of each channel                                    (Ding et al. 2024)

`specs/models/text/rope.py` computes them. Not here: what changes with the length of the text while it is read (dynamic
NTK, LongRoPE's second set of factors): a graph would answer differently for the same tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from specs.components.base import Positive, Size


class _Scaling(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinearScaling(_Scaling):
    """Positions are divided by `factor`."""

    kind: Literal["linear"]
    factor: Positive


class Llama3Scaling(_Scaling):
    """Wavelengths above original_positions / low_freq_factor are stretched, those below / high_freq_factor are not."""

    kind: Literal["llama3"]
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_positions: Size

    @model_validator(mode="after")
    def _check_order(self) -> Llama3Scaling:
        if self.low_freq_factor > self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} is above high_freq_factor {self.high_freq_factor}"
            )
        return self


class YarnScaling(_Scaling):
    """Channels that turn more than `beta_fast` times over the original length stay, those under `beta_slow` stretch."""

    kind: Literal["yarn"]
    factor: Positive
    original_positions: Size
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = Field(default=True, description="whether the ramp begins and ends at whole channels")
    attention_factor: Positive = Field(default=1.0, description="cosines and sines are multiplied by it")


class LongScaling(_Scaling):
    """Each channel has its own factor."""

    kind: Literal["longrope"]
    factors: tuple[Positive, ...] = Field(description="one for each pair of channels")
    attention_factor: Positive = Field(default=1.0, description="cosines and sines are multiplied by it")


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling | LongScaling, Field(discriminator="kind")]
