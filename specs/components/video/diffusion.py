"""Components that make a film: a transformer over space and time, and a causal decoder of three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Epsilon, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_linear, cost_norm
from specs.components.measured import MeasuredComponent

_CONTEXT = 77  # text tokens where nothing says how many


class VideoTransformerComponent(MeasuredComponent):
    """A diffusion transformer whose layers look over space, at the text, and over time (Ma et al. 2024, Latte)."""

    kind: Literal["video.dit"]
    latent_channels: Size = 4
    num_frames: Size = Field(description="latent frames")
    height: Size = Field(description="of a latent frame")
    width: Size = Field(description="of a latent frame")
    patch_size: Size = 2
    hidden_size: Size
    num_layers: LayerCount
    num_heads: Size
    mlp_size: Size | None = Field(default=None, description="width of the MLP; 4 * hidden_size when absent")
    context_size: Size = Field(description="width of the text's states")
    time_size: Annotated[int, Field(ge=2, multiple_of=2)] = Field(default=256, description="of a timestep's sinusoids")
    layer_norm_eps: Epsilon = 1e-6

    @model_validator(mode="after")
    def _check_sizes(self) -> VideoTransformerComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        check_divides(self.height, self.patch_size, size_name="height", heads_name="patch_size")
        check_divides(self.width, self.patch_size, size_name="width", heads_name="patch_size")
        if self.hidden_size % 4:
            raise ValueError("hidden_size must be a multiple of 4: rows and columns share a patch's sinusoids")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def num_patches(self) -> int:
        """Of one frame."""
        return self.grid[0] * self.grid[1]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height, width."""
        return self.latent_channels, self.num_frames, self.height, self.width

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        width, frames, patches = self.hidden_size, self.num_frames, self.num_patches
        tokens, patch = frames * patches, self.latent_channels * self.patch_size**2
        cost = cost_linear(patch, width, tokens) + cost_linear(self.time_size, width) + cost_linear(width, width)
        cost += cost_linear(width, 9 * width) + Cost(2 * width) + cost_linear(self.context_size, width, _CONTEXT)
        for _ in range(self.num_layers):
            cost += Cost(9 * width)
            space = cost_attention(width, width, patches, patches, self.num_heads, bias=True)
            time = cost_attention(width, width, frames, frames, self.num_heads, bias=True)
            cost += Cost(space.parameters, frames * space.macs, frames * space.peak)
            cost += Cost(time.parameters, patches * time.macs, patches * time.peak)
            cost += cost_attention(width, width, tokens, _CONTEXT, self.num_heads, bias=True)
            cost += cost_linear(width, self.mlp_width, tokens) + cost_linear(self.mlp_width, width, tokens)
        return cost + cost_linear(width, patch, tokens)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, (channels, frames, height, width) = sizes["batch"], self.latent_shape
        return Activations(layer=batch * self.measure().peak, interface=2 * batch * channels * frames * height * width)


class VideoDecoderComponent(MeasuredComponent):
    """The decoder of a causal autoencoder of three dimensions (Yu et al. 2024, MAGVIT-v2): latents -> frames.

    A frame is made of its own and earlier latents only. F latent frames become 1 + 2^n (F - 1), where n stages double
    time; the first stands alone, as a picture would.
    """

    kind: Literal["video.vae"]
    latent_channels: Size = 4
    num_frames: Size = Field(description="latent frames")
    height: Size = Field(description="of a latent frame")
    width: Size = Field(description="of a latent frame")
    block_out_channels: tuple[Size, ...] = Field(min_length=1, description="one a resolution, the finest first")
    layers_per_block: LayerCount = 2
    num_time_doublings: Annotated[int, Field(ge=0, le=4)] = Field(default=2, description="from the coarsest stage on")
    norm_num_groups: Size = 32
    scaling_factor: Positive = 0.18215
    frames_per_second: Annotated[int, Field(ge=1, le=240)] = Field(
        default=8, description="how fast the films that it was trained on run; a host shows its frames so"
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> VideoDecoderComponent:
        for width in self.block_out_channels:
            check_divides(width, self.norm_num_groups, size_name="block_out_channels", heads_name="norm_num_groups")
        if self.num_time_doublings >= len(self.block_out_channels):
            raise ValueError("num_time_doublings must be below the number of block_out_channels: stages double both")
        return self

    @property
    def downscale(self) -> int:
        """Pixels a latent, in each direction."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of the film."""
        frames = 1 + int(2**self.num_time_doublings) * (self.num_frames - 1)
        return frames, self.height * self.downscale, self.width * self.downscale

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        frames, places = self.num_frames, self.height * self.width
        widths = self.block_out_channels[::-1]

        def conv(inputs: int, outputs: int) -> Cost:
            weights, positions = 27 * inputs * outputs, frames * places
            return Cost(weights + outputs, weights * positions, (inputs + outputs) * positions)

        def resnet(inputs: int, outputs: int) -> Cost:
            cost = cost_norm(inputs) + conv(inputs, outputs) + cost_norm(outputs) + conv(outputs, outputs)
            return cost + (cost_linear(inputs, outputs, frames * places) if inputs != outputs else Cost())

        cost = conv(self.latent_channels, widths[0]) + resnet(widths[0], widths[0]) + resnet(widths[0], widths[0])
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for _ in range(self.layers_per_block):
                cost += resnet(inputs, outputs)
                inputs = outputs
            if stage < len(widths) - 1:
                frames = 2 * frames - 1 if stage < self.num_time_doublings else frames
                places *= 4
                cost += conv(outputs, outputs)
        return cost + cost_norm(widths[-1]) + conv(widths[-1], 3)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        frames, height, width = self.frame_shape
        return Activations(
            layer=sizes["batch"] * self.measure().peak, interface=sizes["batch"] * 3 * frames * height * width
        )
