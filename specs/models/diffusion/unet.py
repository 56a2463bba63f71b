"""The U-Net of latent diffusion (Rombach et al. 2022; SDXL: Podell et al. 2023), as diffusers' `UNet2DConditionModel`.

    sample -> conv -> [ResNet block, transformer] ... half the size ... -> middle -> ... twice the size ... -> conv
                             \\______________________ skip connections ______________________/
    transformer layer   attention over the picture, attention over the text, GEGLU; each normed before, with a residual
    conditions          timestep, and in SDXL the pooled text and sizes, go to every ResNet block

Shape letters: B batch, C channels, H height, W width, T = H W positions, S text tokens, N heads, D head dim, E width of
the time embedding, F half the width of a sinusoid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components import UNetComponent
from specs.components.diffusion.unet import UNetStage
from specs.models.diffusion.convolution import Downsample, GroupNormSilu, ResnetBlock, Upsample

_MAX_PERIOD = 10000
_TRANSFORMER_NORM_EPS = 1e-6  # of the GroupNorm before a transformer, whatever norm_eps is


class Sinusoids(nn.Module):
    """Sines and cosines of a number times falling frequencies (Vaswani et al. 2017), in float32 whatever comes in.

    The angles reach 1000, where float32 is off by 3e-5: trained models are used to exactly these roundings, so the
    frequencies are computed as diffusers does.
    """

    def __init__(self, size: int, *, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.flip, self.odd = flip_sin_to_cos, size % 2
        exponents_F = -math.log(_MAX_PERIOD) * torch.arange(size // 2, dtype=torch.float32, device="cpu")
        self.frequencies: list[float] = (exponents_F / (size // 2 - freq_shift)).exp().tolist()

    def forward(self, number_B: Tensor) -> Tensor:
        """[B] -> [B, size], float32."""
        angle_BF = number_B[:, None].float() * torch.tensor(self.frequencies, dtype=torch.float32)
        parts = (angle_BF.cos(), angle_BF.sin()) if self.flip else (angle_BF.sin(), angle_BF.cos())
        waves = torch.cat(parts, dim=-1)
        return functional.pad(waves, (0, 1)) if self.odd else waves


class ConditionMlp(nn.Module):
    """Two Linears around SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, outputs)
        self.linear2 = nn.Linear(outputs, outputs)

    def forward(self, x_BC: Tensor) -> Tensor:
        out_BE: Tensor = self.linear2(functional.silu(self.linear1(x_BC)))
        return out_BE


class AttentionCore(nn.Module):
    """softmax(q k^T / sqrt(D)) v between projections: a module of its own, so that its nodes can stay in float32."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        batch, tokens, channels = x_BTC.shape
        return x_BTC.reshape(batch, tokens, self.num_heads, channels // self.num_heads).transpose(1, 2)

    def forward(self, q_BTC: Tensor, k_BSC: Tensor, v_BSC: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias` is added to the scores, [B, 1, 1, S]."""
        q_BNTD, k_BNSD, v_BNSD = (self._split_heads(part) for part in (q_BTC, k_BSC, v_BSC))
        mixed_BNTD = ops.attention(q_BNTD, k_BNSD, v_BNSD, bias, scale=q_BNTD.shape[3] ** -0.5)
        return mixed_BNTD.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention over `context`; only the output has a bias."""

    def __init__(self, width: int, context: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context, width, bias=False)
        self.value = nn.Linear(context, width, bias=False)
        self.core = AttentionCore(num_heads)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTC: Tensor, context_BSC: Tensor) -> Tensor:
        out_BTC: Tensor = self.out(self.core(self.query(x_BTC), self.key(context_BSC), self.value(context_BSC)))
        return out_BTC


class GegluMlp(nn.Module):
    """down(x * gelu(gate)), x and gate the halves of one Linear (Shazeer 2020), four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 8 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        value_BTF, gate_BTF = self.up(x_BTC).chunk(2, dim=-1)
        out_BTC: Tensor = self.down(value_BTF * functional.gelu(gate_BTF))
        return out_BTC


class TransformerLayer(nn.Module):
    """Attention over the picture (or the text), attention over the text, MLP."""

    def __init__(self, width: int, context: int, num_heads: int, *, only_cross: bool) -> None:
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(width)
        self.attention1 = Attention(width, context if only_cross else width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.attention2 = Attention(width, context, num_heads)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = GegluMlp(width)

    def forward(self, x_BTC: Tensor, context_BSC: Tensor) -> Tensor:
        normed_BTC = self.norm1(x_BTC)
        x_BTC = x_BTC + self.attention1(normed_BTC, context_BSC if self.only_cross else normed_BTC)
        x_BTC = x_BTC + self.attention2(self.norm2(x_BTC), context_BSC)
        out_BTC: Tensor = x_BTC + self.mlp(self.norm3(x_BTC))
        return out_BTC


class SpatialTransformer(nn.Module):
    """Transformer layers over the positions of a picture, between two projections, with a residual around."""

    def __init__(self, stage: UNetStage, layers: int, config: UNetComponent) -> None:
        super().__init__()
        width = stage.width
        self.norm = nn.GroupNorm(config.norm_num_groups, width, _TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.cross_attention_size, stage.heads, only_cross=stage.only_cross)
            for _ in range(layers)
        )
        self.proj_out = nn.Linear(width, width)

    def forward(self, x_BCHW: Tensor, context_BSC: Tensor) -> Tensor:
        x_BTC = self.proj_in(self.norm(x_BCHW).flatten(2).transpose(1, 2))
        for layer in self.layers:
            x_BTC = layer(x_BTC, context_BSC)
        out_BTC: Tensor = self.proj_out(x_BTC)
        return x_BCHW + out_BTC.transpose(1, 2).reshape(x_BCHW.shape)


class Stage(nn.Module):
    """The modules of one resolution: ResNet blocks, a transformer behind each or none, and a way to the next."""

    def __init__(
        self, stage: UNetStage, config: UNetComponent, *, resample: nn.Module | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(
                inputs,
                stage.width,
                groups=config.norm_num_groups,
                eps=config.norm_eps,
                condition=config.time_width,
                scale_shift=config.time_scale_shift,
                scale=scale,
            )
            for inputs in stage.inputs
        )
        self.transformers = nn.ModuleList(SpatialTransformer(stage, layers, config) for layers in stage.layers)
        self.resample = resample

    def run_block(self, index: int, x_BCHW: Tensor, time_BE: Tensor, context_BSC: Tensor) -> Tensor:
        """ResNet block `index`, and its transformer."""
        x_BCHW = self.resnets[index](x_BCHW, time_BE)
        return self.transformers[index](x_BCHW, context_BSC) if self.transformers else x_BCHW


class DownStage(Stage):
    """One resolution on the way down; returns all that the way up will look at, the last of them the way on."""

    def forward(self, x_BCHW: Tensor, time_BE: Tensor, context_BSC: Tensor) -> list[Tensor]:
        skips = []
        for index in range(len(self.resnets)):
            x_BCHW = self.run_block(index, x_BCHW, time_BE, context_BSC)
            skips.append(x_BCHW)
        return skips if self.resample is None else [*skips, self.resample(x_BCHW)]


class MiddleStage(Stage):
    """A ResNet block and its transformer, and a second ResNet block where there is one."""

    def forward(self, x_BCHW: Tensor, time_BE: Tensor, context_BSC: Tensor) -> Tensor:
        x_BCHW = self.run_block(0, x_BCHW, time_BE, context_BSC)
        return self.resnets[1](x_BCHW, time_BE) if len(self.resnets) > 1 else x_BCHW


class UpStage(Stage):
    """One resolution on the way up. Takes a skip connection off the end of `skips` for each ResNet block."""

    def forward(self, x_BCHW: Tensor, skips: list[Tensor], time_BE: Tensor, context_BSC: Tensor) -> Tensor:
        for index in range(len(self.resnets)):
            x_BCHW = torch.cat([x_BCHW, skips.pop()], dim=1)
            x_BCHW = self.run_block(index, x_BCHW, time_BE, context_BSC)
        return x_BCHW if self.resample is None else self.resample(x_BCHW, skips[-1])


class UNet(nn.Module):
    """sample [B, C, H, W], timestep [B], encoder_states [B, S, C] (and conditions) -> noise, velocity or sample."""

    def __init__(self, config: UNetComponent) -> None:
        super().__init__()
        self.config = config
        widths, wide = config.block_out_channels, config.time_width
        self.conv_in = _make_conv(config.in_channels, widths[0], config.conv_in_kernel)
        self.sinusoids = _make_sinusoids(widths[0], config)
        self.time_embedding = ConditionMlp(widths[0], wide)
        self.class_embedding = nn.Embedding(config.num_classes, wide) if config.num_classes else None
        self.added_sinusoids = self.added_embedding = None
        if config.added_condition == "text_time":
            assert config.added_text_size and config.added_time_size and config.added_time_count, "validated"
            self.added_sinusoids = _make_sinusoids(config.added_time_size, config)
            added = config.added_text_size + config.added_time_count * config.added_time_size
            self.added_embedding = ConditionMlp(added, wide)
        self.encoder_projection = (
            nn.Linear(config.encoder_size, config.cross_attention_size) if config.encoder_size else None
        )
        self.down = nn.ModuleList(
            DownStage(
                stage,
                config,
                resample=Downsample(stage.width, padding=config.downsample_padding) if stage.resample else None,
            )
            for stage in config.list_down_stages()
        )
        middle = config.find_mid_stage()
        self.middle = MiddleStage(middle, config, scale=config.mid_block_scale_factor) if middle else None
        self.up = nn.ModuleList(
            UpStage(stage, config, resample=Upsample(stage.width) if stage.resample else None)
            for stage in config.list_up_stages()
        )
        self.output_norm = GroupNormSilu(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = _make_conv(widths[0], config.out_channels, config.conv_out_kernel)

    def forward(self, sample_BCHW: Tensor, timestep_B: Tensor, context_BSC: Tensor, *conditions: Tensor) -> Tensor:
        """`conditions` as the family lists them: text_embeds and time_ids (text_time), then class_labels."""
        time_BE = functional.silu(self.embed_conditions(timestep_B, conditions, sample_BCHW.dtype))
        if self.encoder_projection is not None:
            context_BSC = self.encoder_projection(context_BSC)
        if self.config.center_input_sample:
            sample_BCHW = 2 * sample_BCHW - 1
        skips = [self.conv_in(sample_BCHW)]
        for stage in self.down:
            skips += stage(skips[-1], time_BE, context_BSC)
        x_BCHW = skips[-1] if self.middle is None else self.middle(skips[-1], time_BE, context_BSC)
        for stage in self.up:
            x_BCHW = stage(x_BCHW, skips, time_BE, context_BSC)
        out_BCHW: Tensor = self.conv_out(self.output_norm(x_BCHW))
        return out_BCHW

    def embed_conditions(self, timestep_B: Tensor, conditions: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Everything that goes to every ResNet block, [B, E]."""
        left = list(conditions)
        time_BE: Tensor = self.time_embedding(self.sinusoids(timestep_B).to(dtype))
        if self.added_embedding is not None and self.added_sinusoids is not None:
            text_BC, numbers_BN = left.pop(0), left.pop(0)
            waves_BF = self.added_sinusoids(numbers_BN.flatten()).reshape(text_BC.shape[0], -1)
            time_BE = time_BE + self.added_embedding(torch.cat([text_BC, waves_BF.to(dtype)], dim=-1))
        if self.class_embedding is not None:
            time_BE = time_BE + self.class_embedding(left.pop(0))
        return time_BE


def _make_conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=(kernel - 1) // 2)


def _make_sinusoids(size: int, config: UNetComponent) -> Sinusoids:
    return Sinusoids(size, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
