"""An encoder that looks at a film, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Size
from specs.components.encoder import EncoderComponent, EncoderInput
from specs.components.vision.picture import PIXEL_DIMS
from specs.components.vision.vit import VisionTransformerComponent


class FramesComponent(VisionTransformerComponent, EncoderComponent):
    """Raw frames, uint8 [batch, frames, height, width, channels], as many and as large as they come -> tokens.

    All of it in the graph: `num_frames` are sampled evenly (the middle of as many equal parts), stretched to
    `image_size` and seen by one vision transformer; the embeddings of each temporal window of `window_size` sampled
    frames, `window_stride` apart, become one token, their mean, with a learned position in time.
    """

    STRUCTURE: ClassVar[frozenset[str]] = VisionTransformerComponent.STRUCTURE
    DIMS: ClassVar[Mapping[str, tuple[int, int, int]]] = {"frames": (1, 16, 64), **PIXEL_DIMS}

    kind: Literal["video.frames"]  # type: ignore[assignment]  # a tower of a kind of its own
    num_frames: Size = Field(default=8, description="frames that are looked at, of however many there are")
    window_size: Size = Field(default=1, description="sampled frames that make one token")
    window_stride: Size | None = Field(
        default=None, description="sampled frames between windows; window_size if absent"
    )

    @model_validator(mode="before")
    @classmethod
    def _set_preprocess(cls, data: Any) -> Any:
        return {"preprocess": "graph", **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_frames(self) -> FramesComponent:
        if self.preprocess == "host":
            raise ValueError("preprocess 'host' is for single pictures: video.frames samples and resizes in the graph")
        if not self.graph_steps.takes_any_size:
            raise ValueError("resize 'none' needs a crop: frames are as large as the camera makes them")
        if self.window_size > self.num_frames:
            raise ValueError(f"window_size {self.window_size} is more than num_frames {self.num_frames}")
        if self.resolved_pooling == "none" or self.num_classes is not None:
            key = "num_classes" if self.num_classes is not None else "pooling"
            raise ValueError(f"{key}: each frame becomes one embedding, which needs pooling and no classes")
        return self

    @property
    def stride(self) -> int:
        """Sampled frames from one window to the next."""
        return self.window_stride or self.window_size

    @property
    def num_windows(self) -> int:
        return (self.num_frames - self.window_size) // self.stride + 1

    def list_inputs(self) -> tuple[EncoderInput, ...]:
        return (EncoderInput("frames", ("frames", "height", "width", self.num_channels), "uint8", 0, 256),)

    @property
    def output_tokens(self) -> int:
        return self.num_windows

    def count_parameters(self) -> int:
        return super().count_parameters() + self.num_windows * self.feature_size

    def count_macs(self, tokens: int) -> int:
        return self.num_frames * super().count_macs(tokens)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        frames = {**sizes, "batch": sizes["batch"] * self.num_frames}
        layer, _ = super().count_activations(frames)
        raw = sizes["batch"] * sizes["frames"] * sizes["height"] * sizes["width"] * self.num_channels
        return Activations(layer=layer, interface=-(-raw // 4))
