"""Components that look at pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Size, TransformerSizes, check_divides
from specs.components.vision.picture import PictureComponent
from specs.components.vision.picture_steps import PixelSize, split_pair


class VisionTransformerComponent(PictureComponent, TransformerSizes):
    """A vision transformer: patches, learned positions, pre-norm layers, and what is made of their tokens.

    What a kind is, where it is not said otherwise:

        vision.vit      class token, GELU, eps 1e-6; pooled: the normalised class token (Dosovitskiy et al. 2020)
        vision.clip     class token, LayerNorm before the layers, no patch bias, quick GELU, eps 1e-5; pooled: the
                        normalised class token; token features are not normalised (Radford et al. 2021)
        vision.siglip   no class token, tanh GELU, eps 1e-6; pooled: attention with a learned query (Zhai et al. 2023)

    pooled -> [pooler] -> [projection] -> embedding, or -> logits where there is `num_classes`.
    """

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("transformer", "hybrid")
    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {
            "kind",
            "activation",
            "num_channels",
            "channel_order",
            "qkv_bias",
            "layer_scale",
            "num_registers",
            "pooling",
            "pooler_activation",
        }
    )

    kind: Literal["vision.vit", "vision.clip", "vision.siglip"]
    patch_size: PixelSize = Field(description="height and width of a patch in pixels: one number, or [height, width]")
    ignore_remainder: bool = Field(
        default=False, description="pixels right of and below the last whole patch are not seen; else they are an error"
    )
    activation: Activation | None = Field(
        default=None, description="gelu for vision.vit, quick_gelu for vision.clip, gelu_tanh for vision.siglip"
    )
    qkv_bias: bool = True
    layer_scale: bool = Field(default=False, description="a learned factor per channel at the end of every sub-layer")
    num_registers: Annotated[int, Field(ge=0, le=1 << 20)] = Field(
        default=0, description="learned tokens between the class token and the patches"
    )
    pooling: Literal["class", "mean", "attention", "none"] | None = Field(
        default=None, description="what becomes of the tokens: class for vit and clip, attention for siglip"
    )
    pooler_size: Size | None = Field(default=None, description="width of a Linear with an activation after pooling")
    pooler_activation: Activation = "tanh"
    projection_size: Size | None = Field(default=None, description="width of a Linear without bias at the very end")

    @model_validator(mode="before")
    @classmethod
    def _set_epsilon(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "vision.clip":
            return {"layer_norm_eps": 1e-5, **data}
        return data

    @model_validator(mode="after")
    def _check_patches(self) -> VisionTransformerComponent:
        for pixels, patch in zip(self.image, self.patch, strict=True):
            if not self.ignore_remainder:
                check_divides(pixels, patch, size_name="image_size", heads_name="patch_size")
            elif patch > pixels:
                raise ValueError(f"patch_size {patch} is larger than image_size {pixels}")
        return self

    @model_validator(mode="after")
    def _check_pooling(self) -> VisionTransformerComponent:
        if not self.has_class_token and (self.resolved_pooling == "class" or self.num_registers):
            raise ValueError(
                "pooling 'class' and num_registers belong to kinds with a class token, not to vision.siglip"
            )
        after = [key for key in ("num_classes", "pooler_size", "projection_size") if getattr(self, key) is not None]
        if self.resolved_pooling == "none" and after:
            raise ValueError(f"{after[0]} needs pooled features, and pooling is 'none'")
        if self.num_classes is not None and self.projection_size is not None:
            raise ValueError("num_classes and projection_size exclude each other")
        return self

    @property
    def resolved_activation(self) -> Activation:
        defaults: dict[str, Activation] = {"vision.clip": "quick_gelu", "vision.siglip": "gelu_tanh"}
        return self.activation or defaults.get(self.kind, "gelu")

    @property
    def resolved_pooling(self) -> Literal["class", "mean", "attention", "none"]:
        return self.pooling or ("attention" if self.kind == "vision.siglip" else "class")

    @property
    def has_class_token(self) -> bool:
        return self.kind != "vision.siglip"

    @property
    def has_output_norm(self) -> bool:
        """CLIP normalises the pooled class token alone, the others every token."""
        return self.kind != "vision.clip" or self.resolved_pooling == "class"

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        pooled: dict[str, tuple[int, ...]] = (
            {} if self.resolved_pooling == "none" else {"embedding": (self.feature_size,)}
        )
        return {**pooled, "token_features": (self.num_tokens, self.hidden_size)}

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return split_pair(self.patch_size)

    @property
    def num_patches(self) -> int:
        return (self.image[0] // self.patch[0]) * (self.image[1] // self.patch[1])

    @property
    def num_tokens(self) -> int:
        """Class token, registers and patches."""
        return self.has_class_token + self.num_registers + self.num_patches

    @property
    def feature_size(self) -> int:
        """Width of the embedding."""
        return self.projection_size or self.pooler_size or self.hidden_size

    def _count_pool_parameters(self) -> int:
        c, f = self.hidden_size, self.mlp_width
        return c + (4 * c * c + 4 * c) + 2 * c + (2 * c * f + f + c)  # query token, attention, norm, MLP

    def count_parameters(self) -> int:
        c, is_clip = self.hidden_size, self.kind == "vision.clip"
        patch = self.num_channels * self.patch[0] * self.patch[1] * c + (0 if is_clip else c)
        tokens = (self.num_patches + 2 * self.has_class_token + self.num_registers) * c  # positions, and learned ones
        norms = 2 * c * (is_clip + self.has_output_norm)
        layer = self.count_layer_parameters() - (0 if self.qkv_bias else 3 * c) + (2 * c if self.layer_scale else 0)
        pool = self._count_pool_parameters() if self.resolved_pooling == "attention" else 0
        return patch + tokens + norms + self.num_layers * layer + pool + self._count_head_parameters()

    def _count_head_parameters(self) -> int:
        width = self.pooler_size or self.hidden_size
        pooler = (self.hidden_size + 1) * (self.pooler_size or 0)
        return pooler + width * (self.projection_size or 0) + (width + 1) * (self.num_classes or 0)

    def count_macs(self, tokens: int) -> int:
        c, t = self.hidden_size, self.num_tokens
        patch = self.num_patches * self.num_channels * self.patch[0] * self.patch[1] * c
        pool = (2 * t + 2) * c * c + 2 * c * self.mlp_width + 2 * t * c if self.resolved_pooling == "attention" else 0
        biases = (self.pooler_size or 0) + (self.num_classes or 0)
        head = self._count_head_parameters() - biases
        return patch + pool + head + self.num_layers * self.count_layer_macs(t)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        return self.hold_pictures(self.count_layer_activations(sizes["batch"], self.num_tokens), sizes)
