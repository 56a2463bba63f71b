"""What brings the tokens of an image tower to the width of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from specs.components.base import Activation, Activations, Component


class ProjectorComponent(Component):
    """Two Linears around an activation (LLaVA 1.5, Liu et al. 2023), and which features of the tower they read."""

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation", "bias", "feature_layers"})

    kind: Literal["fusion.projector"]
    activation: Activation = "gelu"
    bias: bool = True
    feature_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="after how many of the tower's layers its tokens are read, side by side; all when empty"
    )
    skip_tokens: Annotated[int, Field(ge=0)] = Field(
        default=1, description="tokens at the beginning that are left away: the class token"
    )
    image_token: Annotated[int, Field(ge=0)] = Field(description="id that stands for one token of a picture in a text")

    def count_parameters(self) -> int:
        raise NotImplementedError("a projector's parameters depend on its neighbours: see specs.families.media_text")

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        return Activations(layer=0, interface=0)
