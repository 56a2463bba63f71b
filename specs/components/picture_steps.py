"""What a host does to a picture of any size before a vision graph sees it. Pixel values are for the graph."""

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
