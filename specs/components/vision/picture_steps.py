"""How a picture of any size is made to fit a model: by a host in 8 bits as Pillow does, or in the graph, unrounded.

What becomes of the values of its pixels is for the graph in both cases.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from specs.components.base import Size

_LARGEST = 1 << 20


def check_pair(value: object) -> int | tuple[int, int]:
    """One number, or [height, width]; two that are equal become one."""
    parts = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(parts) != 2 or not all(type(part) is int and 1 <= part <= _LARGEST for part in parts):
        raise ValueError(f"needs a whole number from 1, or [height, width], got {value!r}")
    return parts[0] if parts[0] == parts[1] else (parts[0], parts[1])


def split_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a `PixelSize`."""
    return value if isinstance(value, tuple) else (value, value)


#: Height and width in pixels: one number where they are equal.
PixelSize = Annotated[
    int | tuple[int, int], PlainValidator(check_pair, json_schema_input_type=Size | tuple[Size, Size])
]

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

#: Filters with a jump: at its edge the last bit of Pillow's float64 decides whether a pixel counts.
_JUMPING = ("nearest", "box")


class PictureSteps(BaseModel):
    """Resize as Pillow does, in 8 bits; then a crop around the centre, with black where the picture does not reach."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Literal["stretch", "shortest_edge", "none"] = Field(
        default="stretch", description="stretch: to `size`, whatever the proportions; shortest_edge: keeps them"
    )
    size: PixelSize | None = Field(default=None, description="[height, width], or one number for the shortest edge")
    resample: Resample = Field(default="bilinear", description="Pillow's filter of this name")
    crop: PixelSize | None = Field(default=None, description="[height, width] around the centre, after the resize")

    @model_validator(mode="after")
    def _check_size(self) -> PictureSteps:
        if (self.resize == "none") != (self.size is None):
            raise ValueError("size belongs to a resize, which needs it")
        if self.resize == "shortest_edge" and isinstance(self.size, tuple):
            raise ValueError("the size of a shortest_edge is one number")
        return self

    @property
    def takes_any_size(self) -> bool:
        """Whether pictures of more than one size end in one that a model can take."""
        return self.resize != "none" or self.crop is not None

    def check_graph(self, image: tuple[int, int]) -> None:
        """ValueError unless a graph can do this to pixels of any size, and ends in `image`, height and width."""
        if self.resize != "none" and self.resample in _JUMPING:
            raise ValueError(
                f"preprocess graph cannot resample '{self.resample}', whose pixels hang on the last bit of a float64;"
                " take bilinear, hamming, bicubic or lanczos, or preprocess host"
            )
        if self.resize == "shortest_edge" and self.crop is None:
            raise ValueError(
                "preprocess graph ends in one size, and a shortest_edge leaves the other side open: add"
                f" crop: [{image[0]}, {image[1]}], or take resize stretch"
            )
        final = self.crop if self.crop is not None else self.size
        if final is not None and split_pair(final) != image:
            height, width = split_pair(final)
            raise ValueError(
                f"preprocessing ends in {height} by {width} pixels, and image_size is {image[0]} by {image[1]}"
            )
