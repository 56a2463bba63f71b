"""The autoencoder of latent diffusion (Rombach et al. 2022), as diffusers' `AutoencoderKL`.

    encode   image -> conv -> [ResNet blocks, half the size] ... -> middle -> norm, SiLU, conv -> mean, log variance
    decode   latents -> conv -> middle -> [ResNet blocks, twice the size] ... -> norm, SiLU, conv -> image

Pictures are in [-1, 1]; decoding may leave that range a little, and a host clips. Latents are unscaled.

Shape letters: B batch, C channels, H height, W width, T = H W positions.
"""

from __future__ import annotations

from torch import Tensor, nn

from specs import ops
from specs.components import VaeComponent
from specs.models.diffusion.convolution import Downsample, GroupNormSilu, ResnetBlock, Upsample

_EPS = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)  # where a latent distribution ends


class PictureAttention(nn.Module):
    """One head over all positions of a picture, with a norm before and a residual around."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, _EPS)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BTC = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        q_B1TC, k_B1TC, v_B1TC = (part(x_BTC).unsqueeze(1) for part in (self.query, self.key, self.value))
        mixed_B1TC = ops.attention(q_B1TC, k_B1TC, v_B1TC, scale=x_BTC.shape[2] ** -0.5)
        out_BTC: Tensor = self.out(mixed_B1TC.squeeze(1))
        return x_BCHW + out_BTC.transpose(1, 2).reshape(x_BCHW.shape)


class Middle(nn.Module):
    """Two ResNet blocks, and attention between them where the model has it."""

    def __init__(self, channels: int, config: VaeComponent) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, eps=_EPS) for _ in range(2))
        self.attention = PictureAttention(channels, groups) if config.mid_block_attention else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.resnets[0](x_BCHW)
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW)
        out_BCHW: Tensor = self.resnets[1](x_BCHW)
        return out_BCHW


class Stage(nn.Module):
    """ResNet blocks at one resolution, and the way to the next."""

    def __init__(self, inputs: int, outputs: int, count: int, resample: nn.Module | None, config: VaeComponent) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(outputs if index else inputs, outputs, groups=config.norm_num_groups, eps=_EPS)
            for index in range(count)
        )
        self.resample = resample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for resnet in self.resnets:
            x_BCHW = resnet(x_BCHW)
        return x_BCHW if self.resample is None else self.resample(x_BCHW)


class Encoder(nn.Module):
    """Image [B, C, H, W] -> moments [B, 2 * latent channels, H / 8, W / 8] (8 with four resolutions)."""

    def __init__(self, config: VaeComponent) -> None:
        super().__init__()
        widths, stages = config.block_out_channels, []
        for index, width in enumerate(widths):
            down = Downsample(width, padding=0) if index < len(widths) - 1 else None
            stages.append(Stage(widths[max(index - 1, 0)], width, config.layers_per_block, down, config))
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(stages)
        self.middle = Middle(widths[-1], config)
        self.output_norm = GroupNormSilu(config.norm_num_groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(image_BCHW)
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        moments_BCHW: Tensor = self.conv_out(self.output_norm(self.middle(x_BCHW)))
        return moments_BCHW


class Decoder(nn.Module):
    """Latents [B, C, H, W] -> image [B, 3, 8 H, 8 W] (8 with four resolutions)."""

    def __init__(self, config: VaeComponent) -> None:
        super().__init__()
        widths, stages = config.block_out_channels[::-1], []
        for index, width in enumerate(widths):
            up = Upsample(width) if index < len(widths) - 1 else None
            stages.append(Stage(widths[max(index - 1, 0)], width, config.layers_per_block + 1, up, config))
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], config)
        self.stages = nn.ModuleList(stages)
        self.output_norm = GroupNormSilu(config.norm_num_groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        x_BCHW = self.middle(self.conv_in(latents_BCHW))
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        image_BCHW: Tensor = self.conv_out(self.output_norm(x_BCHW))
        return image_BCHW


class Autoencoder(nn.Module):
    """The parameters that `Encode` and `Decode` share."""

    def __init__(self, config: VaeComponent) -> None:
        super().__init__()
        self.encoder = Encoder(config) if config.encoder else None
        moments = 2 * config.latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.encoder and config.quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(config.latent_channels, config.latent_channels, 1) if config.post_quant_conv else None
        )
        self.decoder = Decoder(config)


class Encode(nn.Module):
    """image [B, C, H, W] in [-1, 1] -> mean and log variance of the latents' normal distribution."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        assert self.autoencoder.encoder is not None, "the family has no graph that encodes without it"
        moments_BCHW = self.autoencoder.encoder(image_BCHW)
        if self.autoencoder.quant_conv is not None:
            moments_BCHW = self.autoencoder.quant_conv(moments_BCHW)
        mean_BCHW, log_variance_BCHW = moments_BCHW.chunk(2, dim=1)
        return mean_BCHW, log_variance_BCHW.clamp(*_LOG_VARIANCE)


class Decode(nn.Module):
    """latents [B, C, H, W] -> image in [-1, 1]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        if self.autoencoder.post_quant_conv is not None:
            latents_BCHW = self.autoencoder.post_quant_conv(latents_BCHW)
        image_BCHW: Tensor = self.autoencoder.decoder(latents_BCHW)
        return image_BCHW
