"""What every component that looks at one picture has: its size, what its pixels are turned into, and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, Size
from specs.components.vision.picture_steps import PictureSteps, PixelSize, split_pair

#: name -> min, opt, max of a raw picture's sides in pixels, where the graph resizes it; a spec's `dims` may change them
PIXEL_DIMS: Mapping[str, tuple[int, int, int]] = {"height": (1, 480, 2160), "width": (1, 640, 3840)}


class PictureComponent(Component):
    """The graph takes RGB (or grey) pixels as float32 in [0, 1], or raw ones as uint8, and normalises them itself.

    So an edge app hands over raw pixels, whatever the model was trained on.
    """

    #: What `architecture` of a spec may call such a model; the first is the usual one.
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("transformer",)

    image_size: PixelSize = Field(description="height and width in pixels: one number, or [height, width]")
    num_channels: Size = 3
    num_classes: Size | None = Field(default=None, description="width of the logits; a classifier needs it")
    image_mean: tuple[float, ...] = Field(default=(0.5,), description="per channel, or one for all")
    image_std: tuple[float, ...] = Field(default=(0.5,), description="per channel, or one for all")
    channel_order: Literal["rgb", "bgr"] = Field(
        default="rgb", description="what the first layer reads; a host hands over RGB, and mean and std are RGB's"
    )
    preprocess: Literal["host", "graph"] = Field(
        default="host", description="graph: it takes raw pixels of any size, uint8 [height, width, channels]"
    )
    preprocessing: PictureSteps | None = Field(
        default=None, description="how a picture is made to fit; absent: stretched, bilinear, without rounding"
    )

    @model_validator(mode="after")
    def _check_pixels(self) -> PictureComponent:
        for key in ("image_mean", "image_std"):
            if len(getattr(self, key)) not in (1, self.num_channels):
                raise ValueError(f"{key} needs 1 or num_channels={self.num_channels} numbers")
        if any(std <= 0 for std in self.image_std):
            raise ValueError("image_std must be positive")
        if self.preprocess == "graph" and self.preprocessing is not None:
            self.preprocessing.check_graph(self.image)
        if self.channel_order == "bgr" and self.num_channels != 3:
            raise ValueError(f"channel_order bgr needs 3 channels, num_channels is {self.num_channels}")
        return self

    @property
    def image(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return split_pair(self.image_size)

    @property
    def graph_steps(self) -> PictureSteps:
        """What a graph that takes raw pixels does to them."""
        return self.preprocessing or PictureSteps(size=self.image_size)

    @property
    def raw_shape(self) -> tuple[int | str, ...] | None:
        """Of raw pixels, without the batch: sizes, and names of PIXEL_DIMS. None where a host resizes."""
        if self.preprocess == "host":
            return None
        sides: tuple[int | str, ...] = tuple(PIXEL_DIMS) if self.graph_steps.takes_any_size else self.image
        return (*sides, self.num_channels)

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """What the model gives without `num_classes`: output -> its shape behind the batch axis."""
        raise NotImplementedError

    def hold_pictures(self, layer: int, sizes: Mapping[str, int]) -> Activations:
        """What a forward holds: `layer` values in its widest layer, and the pictures that it takes."""
        batch, (height, width) = sizes["batch"], self.image
        if self.raw_shape is None:
            return Activations(layer=layer, interface=batch * self.num_channels * height * width)
        raw_height, raw_width = (sizes[side] if isinstance(side, str) else side for side in self.raw_shape[:2])
        raw = batch * self.num_channels * raw_height * raw_width
        # as float32, in the order of bytes and in planes, and between the two products
        return Activations(layer=max(layer, 2 * raw + raw * width // raw_width), interface=-(-raw // 4))
