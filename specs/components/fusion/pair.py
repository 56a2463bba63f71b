"""Components that join the features of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, Positive, Size


class FusionComponent(Component):
    """Joins the features of two towers.

    `fusion.late`: a projection each, normalised, and their scaled similarity (Radford et al. 2021).
    `fusion.sigmoid`: no projection; the scaled similarity and a bias, to be read through a sigmoid (Zhai et al. 2023).
    `fusion.gated`: a learned sigmoid gate blends the projections (Arevalo et al. 2017).
    `fusion.attention`: softmax weights over the modalities that are present, with a temperature.
    """

    kind: Literal["fusion.late", "fusion.sigmoid", "fusion.gated", "fusion.attention"]
    projection_size: Size | None = Field(default=None, description="common width; needed by all but fusion.sigmoid")
    temperature: Positive = Field(default=1.0, description="of fusion.attention's softmax")

    @model_validator(mode="after")
    def _check_temperature(self) -> FusionComponent:
        if self.kind != "fusion.attention" and self.temperature != 1.0:
            raise ValueError(f"temperature belongs to fusion.attention, and {self.kind} does not use it")
        if (self.kind == "fusion.sigmoid") != (self.projection_size is None):
            raise ValueError("projection_size belongs to every fusion but fusion.sigmoid, and they need it")
        return self

    def count_parameters(self) -> int:
        raise NotImplementedError("a fusion's parameters depend on its towers: see specs.families.similarity")

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(layer=0, interface=batch * (4 * (self.projection_size or 0) + batch))
