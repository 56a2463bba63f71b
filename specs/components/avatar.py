"""Components of a real-time avatar: who it is, how it moves with a voice, and the picture of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from specs.components.audio.mel import MelSettings
from specs.components.base import Activations, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_linear, cost_norm
from specs.components.measured import MeasuredComponent

_RATE_HZ = 16000


def cost_conv_3d(inputs: int, outputs: int, kernel: int, places: int) -> Cost:
    """A cubic convolution with bias that writes `places` voxels."""
    weights = inputs * outputs * kernel**3
    return Cost(weights + outputs, weights * places, (inputs + outputs) * places)


def cost_conv_2d(inputs: int, outputs: int, kernel: int, places: int) -> Cost:
    """A square convolution with bias that writes `places` pixels."""
    weights = inputs * outputs * kernel**2
    return Cost(weights + outputs, weights * places, (inputs + outputs) * places)


class AppearanceComponent(MeasuredComponent):
    """A picture of somebody -> a feature volume and canonical keypoints (Wang et al. 2021). Runs once an identity."""

    kind: Literal["avatar.appearance"]
    image_size: Size = Field(description="height and width in pixels, of the picture and of the frames")
    hidden_size: Size = Field(description="channels at full resolution; doubled at each halving")
    num_halvings: Annotated[int, Field(ge=1, le=6)] = Field(default=2, description="of height and width")
    volume_channels: Size = 32
    volume_depth: Size = 16
    num_blocks: LayerCount = Field(default=4, description="residual blocks in the volume")
    num_keypoints: Size = 20
    norm_num_groups: Size = 8
    temperature: Positive = Field(default=0.1, description="of the keypoints' softmax")

    @model_validator(mode="after")
    def _check_sizes(self) -> AppearanceComponent:
        check_divides(
            self.image_size, 2**self.num_halvings, size_name="image_size", heads_name="2 to the num_halvings ="
        )
        for name in ("hidden_size", "volume_channels"):
            check_divides(getattr(self, name), self.norm_num_groups, size_name=name, heads_name="norm_num_groups")
        return self

    @property
    def volume_size(self) -> int:
        """Height and width of the volume."""
        return self.image_size >> self.num_halvings

    @property
    def folded_channels(self) -> int:
        """Channels of the volume with its depth folded in."""
        return self.volume_channels * self.volume_depth

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        width, side = self.hidden_size, self.image_size
        cost = cost_conv_2d(3, width, 7, side * side)
        for _ in range(self.num_halvings):
            cost += cost_norm(width) + cost_conv_2d(width, 2 * width, 3, side * side // 4)
            width, side = 2 * width, side // 2
        voxels = self.volume_depth * side * side
        cost += cost_norm(width) + cost_conv_2d(width, self.folded_channels, 1, side * side)
        block = cost_norm(self.volume_channels) + cost_conv_3d(self.volume_channels, self.volume_channels, 3, voxels)
        for _ in range(2 * self.num_blocks):
            cost += block
        return cost + cost_conv_3d(self.volume_channels, self.num_keypoints, 3, voxels)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(layer=batch * self.measure().peak, interface=batch * 3 * self.image_size**2)


class MotionComponent(MeasuredComponent):
    """A voice, frame by frame -> where the keypoints are. Causal: WaveNet's layers (van den Oord et al. 2016).

    The host hands over the samples of one video frame and the state that the last call gave back.
    """

    kind: Literal["avatar.motion"]
    frames_per_second: Annotated[int, Field(ge=1, le=200)] = 25
    mel: MelSettings = MelSettings(fft_length=640, hop_length=160, center=False)
    hidden_size: Size
    num_layers: LayerCount = Field(description="layer i looks back (kernel_size - 1) 2^i mel frames")
    kernel_size: Annotated[int, Field(ge=2, le=16)] = 3
    num_keypoints: Size = 20

    @model_validator(mode="after")
    def _check_frames(self) -> MotionComponent:
        if self.mel.center:
            raise ValueError("mel.center must be false: a centred window looks at samples that are still to come")
        if self.mel.fft_length < self.mel.hop_length:
            raise ValueError("mel.fft_length is shorter than mel.hop_length, so samples would be skipped")
        if self.mel.sample_rate % (self.frames_per_second * self.mel.hop_length):
            raise ValueError(
                f"mel.hop_length {self.mel.hop_length} does not divide the {self.mel.sample_rate} /"
                f" {self.frames_per_second} samples of a video frame"
            )
        if self.num_layers > 16:
            raise ValueError("num_layers above 16 would look back for minutes")
        return self

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one video frame."""
        return self.mel.sample_rate // self.frames_per_second

    @property
    def steps(self) -> int:
        """Mel frames of one video frame."""
        return self.samples_per_frame // self.mel.hop_length

    @property
    def past_samples(self) -> int:
        """Samples of the past that the first window still needs."""
        return self.mel.fft_length - self.mel.hop_length

    def look_back(self, layer: int) -> int:
        """Mel frames that a layer remembers."""
        return int((self.kernel_size - 1) * 2**layer)

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        width, steps = self.hidden_size, self.steps
        cost = cost_linear(self.mel.num_mels, width, steps) + Cost(macs=self.mel.count_macs(steps))
        gated = width * 2 * width * self.kernel_size
        for _ in range(self.num_layers):
            cost += Cost(gated + 2 * width, gated * steps, 3 * width * steps) + cost_linear(width, 2 * width, steps)
        return cost + cost_linear(width, 6 + 3 * self.num_keypoints)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(layer=batch * self.measure().peak, interface=batch * self.samples_per_frame)

    def count_state(self, sizes: Mapping[str, int]) -> int:
        layers = sum(self.hidden_size * self.look_back(layer) for layer in range(self.num_layers))
        return 2 * sizes["batch"] * (self.past_samples + layers)


class RendererComponent(MeasuredComponent):
    """A volume, moved from one set of keypoints to another, as a picture (Siarohin et al. 2019; Wang et al. 2021)."""

    kind: Literal["avatar.renderer"]
    image_size: Size
    volume_channels: Size = 32
    volume_depth: Size = 16
    num_keypoints: Size = 20
    num_doublings: Annotated[int, Field(ge=1, le=6)] = Field(default=2, description="from volume to picture")
    flow_size: Size = Field(description="channels of the network that mixes the keypoints' motions")
    flow_channels: Size = Field(default=4, description="channels of the volume that it looks at")
    hidden_size: Size = Field(description="channels of the picture's network at full resolution")
    num_blocks: LayerCount = 4
    norm_num_groups: Size = 8
    variance: Positive = Field(default=0.01, description="of a keypoint's reach, in [-1, 1]")

    @model_validator(mode="after")
    def _check_sizes(self) -> RendererComponent:
        check_divides(
            self.image_size, 2**self.num_doublings, size_name="image_size", heads_name="2 to the num_doublings ="
        )
        for name in ("flow_size", "hidden_size"):
            check_divides(getattr(self, name), self.norm_num_groups, size_name=name, heads_name="norm_num_groups")
        return self

    @property
    def volume_size(self) -> int:
        """Height and width of the volume."""
        return self.image_size >> self.num_doublings

    @property
    def motion_channels(self) -> int:
        """What the flow network sees of each motion: a warped volume and a difference of heat maps."""
        return (self.num_keypoints + 1) * (self.flow_channels + 1)

    def measure(self) -> Cost:
        """The walk through the module's layers."""
        side, depth, flow = self.volume_size, self.volume_depth, self.flow_size
        pixels, motions = side * side, self.num_keypoints + 1
        voxels = depth * pixels
        cost = cost_conv_3d(self.volume_channels, self.flow_channels, 1, voxels)
        cost += cost_conv_3d(self.motion_channels, flow, 3, voxels) + cost_norm(flow)
        cost += cost_conv_3d(flow, flow, 3, voxels) + cost_norm(flow)
        cost += cost_conv_3d(flow, motions, 3, voxels) + cost_conv_2d(flow * depth, 1, 3, pixels)
        width = self.hidden_size << self.num_doublings
        cost += cost_conv_2d(self.volume_channels * depth, width, 1, pixels)
        for _ in range(2 * self.num_blocks):
            cost += cost_norm(width) + cost_conv_2d(width, width, 3, pixels)
        for _ in range(self.num_doublings):
            pixels *= 4
            cost += cost_norm(width) + cost_conv_2d(width, width // 2, 3, pixels)
            width //= 2
        return cost + cost_norm(width) + cost_conv_2d(width, 3, 7, pixels)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        return Activations(layer=batch * self.measure().peak, interface=batch * 3 * self.image_size**2)
