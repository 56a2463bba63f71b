"""Components that look at pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Size, TransformerSizes, check_divides


class VisionTransformerComponent(TransformerSizes):
    """A vision transformer: patches, a class token, learned positions, pre-norm layers.

    The graph takes RGB (or grey) pixels as float32 in [0, 1] and normalises them itself, so that an edge app hands
    over raw pixels. `vision.vit` ends in class logits (Dosovitskiy et al. 2020), `vision.clip` in the normalised
    class token (Radford et al. 2021: an extra LayerNorm before the layers, no patch bias, quick GELU).
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation", "num_channels"})

    kind: Literal["vision.vit", "vision.clip"]
    image_size: Size = Field(description="height and width in pixels")
    patch_size: Size = Field(description="height and width of a patch in pixels")
    num_channels: Size = 3
    num_classes: Size | None = Field(default=None, description="width of the logits; required by vision.vit")
    activation: Activation | None = Field(default=None, description="gelu for vision.vit, quick_gelu for vision.clip")
    image_mean: tuple[float, ...] = Field(default=(0.5,), description="per channel, or one for all")
    image_std: tuple[float, ...] = Field(default=(0.5,), description="per channel, or one for all")

    @model_validator(mode="after")
    def _check_image(self) -> VisionTransformerComponent:
        check_divides(self.image_size, self.patch_size, size_name="image_size", heads_name="patch_size")
        if (self.kind == "vision.vit") != (self.num_classes is not None):
            raise ValueError("num_classes belongs to vision.vit, which needs it, and to no other kind")
        for key in ("image_mean", "image_std"):
            if len(getattr(self, key)) not in (1, self.num_channels):
                raise ValueError(f"{key} needs 1 or num_channels={self.num_channels} numbers")
        if any(std <= 0 for std in self.image_std):
            raise ValueError("image_std must be positive")
        return self

    @property
    def resolved_activation(self) -> Activation:
        return self.activation or ("quick_gelu" if self.kind == "vision.clip" else "gelu")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def count_parameters(self) -> int:
        c = self.hidden_size
        patch = self.num_channels * self.patch_size**2 * c + (0 if self.kind == "vision.clip" else c)
        positions = (self.num_patches + 1) * c + c
        norms = 2 * c * (2 if self.kind == "vision.clip" else 1)
        head = (c + 1) * self.num_classes if self.num_classes else 0
        return patch + positions + norms + head + self.num_layers * self.count_layer_parameters()

    def count_macs(self, tokens: int) -> int:
        patch = self.num_patches * self.num_channels * self.patch_size**2 * self.hidden_size
        head = self.hidden_size * (self.num_classes or 0)
        return patch + head + self.num_layers * self.count_layer_macs(self.num_patches + 1)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(
            layer=self.count_layer_activations(batch, self.num_patches + 1),
            interface=batch * self.num_channels * self.image_size**2,
        )
