"""The autoencoder of latent diffusion: pictures to latents a fraction of their size, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_conv, cost_norm, cost_resnet


class VaeComponent(Component):
    """`AutoencoderKL` of latent diffusion (Rombach et al. 2022; Stable Diffusion 1 to 3, SDXL).

    Pictures are in [-1, 1], latents as the model itself makes and takes them: a host subtracts `shift_factor` and
    multiplies by `scaling_factor` before a U-Net sees them, and undoes both before decoding.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {"kind", "in_channels", "encoder", "quant_conv", "post_quant_conv", "mid_block_attention", "force_upcast"}
    )

    kind: Literal["diffusion.vae"]
    in_channels: Size = Field(default=3, description="of the picture that is encoded")
    out_channels: Size = Field(default=3, description="of the picture that is decoded")
    latent_channels: Size = 4
    block_out_channels: tuple[Size, ...] = Field(min_length=1, description="one a resolution, the finest first")
    layers_per_block: LayerCount = 2
    norm_num_groups: Size = 32
    mid_block_attention: bool = True
    quant_conv: bool = Field(default=True, description="a 1 by 1 convolution behind the encoder")
    post_quant_conv: bool = Field(default=True, description="a 1 by 1 convolution before the decoder")
    encoder: bool = Field(default=True, description="false: the decoder alone, as text to image needs it")
    scaling_factor: Positive = 0.18215
    shift_factor: float = 0.0
    force_upcast: bool = Field(
        default=False, description="its activations leave the range of float16 (SDXL's do): fp16 graphs keep float32"
    )
    sample_size: tuple[Size, Size] = Field(default=(64, 64), description="latent height and width it is made for")

    @model_validator(mode="after")
    def _check_groups(self) -> VaeComponent:
        for width in self.block_out_channels:
            check_divides(width, self.norm_num_groups, size_name="block_out_channels", heads_name="norm_num_groups")
        return self

    @property
    def downscale(self) -> int:
        """Pixels a latent, in each direction."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def count_parameters(self) -> int:
        return self._walk(*self.sample_size).parameters

    def count_macs(self, tokens: int) -> int:
        """Of decoding one picture of `sample_size`; encoding costs about half of it."""
        return self._walk_decoder(*self.sample_size).macs

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        height, width = (
            sizes.get(name, size) for name, size in zip(("height", "width"), self.sample_size, strict=True)
        )
        pixels = height * width * self.downscale**2
        return Activations(
            layer=batch * self._walk(height, width).peak,
            interface=batch * (pixels * self.out_channels + height * width * self.latent_channels),
        )

    def _walk(self, height: int, width: int) -> Cost:
        decoder = self._walk_decoder(height, width)
        return decoder + self._walk_encoder(height, width) if self.encoder else decoder

    def _walk_decoder(self, height: int, width: int) -> Cost:
        places, latent, channels = height * width, self.latent_channels, self.block_out_channels[::-1]
        cost = cost_conv(latent, latent, 1, places) if self.post_quant_conv else Cost()
        cost += cost_conv(latent, channels[0], 3, places) + self._walk_mid(channels[0], places)
        before = channels[0]
        for index, wide in enumerate(channels):
            for layer in range(self.layers_per_block + 1):
                cost += cost_resnet(wide if layer else before, wide, 0, places)
            if index < len(channels) - 1:
                places *= 4
                cost += cost_conv(wide, wide, 3, places)
            before = wide
        return cost + cost_norm(before) + cost_conv(before, self.out_channels, 3, places)

    def _walk_encoder(self, height: int, width: int) -> Cost:
        places, channels = height * width * self.downscale**2, self.block_out_channels
        cost = cost_conv(self.in_channels, channels[0], 3, places)
        before = channels[0]
        for index, wide in enumerate(channels):
            for layer in range(self.layers_per_block):
                cost += cost_resnet(wide if layer else before, wide, 0, places)
            if index < len(channels) - 1:
                places //= 4
                cost += cost_conv(wide, wide, 3, places)
            before = wide
        moments = 2 * self.latent_channels
        cost += self._walk_mid(before, places) + cost_norm(before) + cost_conv(before, moments, 3, places)
        return cost + cost_conv(moments, moments, 1, places) if self.quant_conv else cost

    def _walk_mid(self, width: int, places: int) -> Cost:
        cost = cost_resnet(width, width, 0, places) + cost_resnet(width, width, 0, places)
        if self.mid_block_attention:
            cost += cost_norm(width) + cost_attention(width, width, places, places, 1, bias=True)
        return cost
