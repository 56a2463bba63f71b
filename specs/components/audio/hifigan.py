"""HiFi-GAN: frames to samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.audio.vits import check_odd
from specs.components.base import Activations, Size
from specs.components.costs import Cost, cost_conv1d
from specs.components.measured import MeasuredComponent

_INPUT_KERNEL = 7  # of the first and the last convolution


class HifiganComponent(MeasuredComponent):
    """HiFi-GAN's generator (Kong et al. 2020): transposed convolutions, and residual blocks of several kernels.

    Each of the transposed convolutions halves the channels and multiplies time by its rate; the mean of as many
    residual blocks as there are kernels follows it.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind"})

    kind: Literal["audio.hifigan"]
    input_size: Size = Field(default=192, description="channels of the frames: latents, or mel bands")
    initial_size: Size = Field(default=512, description="channels before the first transposed convolution")
    upsample_rates: tuple[Size, ...] = Field(default=(8, 8, 2, 2), min_length=1)
    upsample_kernels: tuple[Size, ...] = Field(default=(16, 16, 4, 4), min_length=1)
    residual_kernels: tuple[Size, ...] = Field(default=(3, 7, 11), min_length=1)
    residual_dilations: tuple[tuple[Size, ...], ...] = Field(
        default=((1, 3, 5), (1, 3, 5), (1, 3, 5)), description="of each kernel's block"
    )
    leaky_slope: Annotated[float, Field(ge=0, le=1)] = 0.1
    sample_rate_hz: Size = 16000
    speaker_size: Size | None = Field(default=None, description="width of a speaker's vector; absent: one speaker")

    @model_validator(mode="after")
    def _check_sizes(self) -> HifiganComponent:
        if len(self.upsample_rates) != len(self.upsample_kernels):
            raise ValueError("upsample_rates and upsample_kernels need the same number of entries")
        if len(self.residual_kernels) != len(self.residual_dilations):
            raise ValueError("residual_kernels and residual_dilations need the same number of entries")
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernels, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"an upsample kernel of {kernel} does not make exactly {rate} samples of one")
        for kernel in self.residual_kernels:
            check_odd(kernel, "residual_kernels")
        if self.initial_size >> len(self.upsample_rates) < 1:
            raise ValueError(f"initial_size {self.initial_size} cannot be halved {len(self.upsample_rates)} times")
        return self

    @property
    def hop_length(self) -> int:
        """Samples of one frame."""
        return math.prod(self.upsample_rates)

    def measure(self, frames: int = 1) -> Cost:
        cost, width, places = cost_conv1d(self.input_size, self.initial_size, _INPUT_KERNEL, frames), 0, frames
        if self.speaker_size:
            cost += cost_conv1d(self.speaker_size, self.initial_size, 1, 1)
        for stage, (rate, kernel) in enumerate(zip(self.upsample_rates, self.upsample_kernels, strict=True)):
            inputs, width = self.initial_size >> stage, self.initial_size >> (stage + 1)
            weights = inputs * width * kernel
            cost += Cost(weights + width, weights * places, (inputs + width * rate) * places)
            places *= rate
            for size, dilations in zip(self.residual_kernels, self.residual_dilations, strict=True):
                for _ in dilations:
                    cost += cost_conv1d(width, width, size, places) + cost_conv1d(width, width, size, places)
        return cost + cost_conv1d(width, 1, _INPUT_KERNEL, places, bias=False)

    def count_macs(self, tokens: int) -> int:
        """`tokens` counts frames."""
        return self.measure(tokens).macs

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, frames = sizes["batch"], sizes["frames"]
        interface = batch * frames * (self.input_size + self.hop_length)
        return Activations(layer=2 * batch * self.measure(frames).peak, interface=interface)
