"""Text to video: a transformer that removes noise over space and time, and a causal decoder of three dimensions.

    transformer   x = x + gate space(adaLN(x)); x = x + text(x); x = x + gate time(adaLN(x)); x = x + gate mlp(adaLN(x))
    decoder       latents -> conv -> ResNet blocks -> [ResNet blocks, twice the size, twice the frames] ... -> frames

The transformer is Latte's kind (Ma et al. 2024): patches of every frame attend to the patches of their frame, to the
text, and to the same place in all frames. Its conditioning is adaLN-single (Chen et al. 2023, PixArt): one projection
of the timestep for all layers, and a table a layer. The decoder is that of a causal autoencoder (Yu et al. 2024,
MAGVIT-v2): convolutions see no later frame, norms see one frame at a time.

Shape letters: B batch, C channels, F frames, H height, W width, N patches of a frame, T = F N tokens, S text tokens.

Not here: the autoencoder's encoder, which generation does not need.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components.video.diffusion import VideoDecoderComponent, VideoTransformerComponent
from specs.models.blocks import make_sinusoids
from specs.models.diffusion.convolution import GroupNormSilu
from specs.models.fusion.resampling import AttentionTo
from specs.models.layers import Mlp, SelfAttention

_EPS = 1e-6


class SpaceTimeLayer(nn.Module):
    """Space, text, time, MLP."""

    def __init__(self, config: VideoTransformerComponent) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.modulation = nn.Parameter(torch.empty(9, width))
        self.space = SelfAttention(width, config.num_heads, causal=False)
        self.text = AttentionTo(width, config.num_heads)
        self.time = SelfAttention(width, config.num_heads, causal=False)
        self.mlp = Mlp(width, config.mlp_width, "gelu_tanh")

    def forward(self, x_BTC: Tensor, condition_B9C: Tensor, states_BSC: Tensor) -> Tensor:
        frames, patches = self.config.num_frames, self.config.num_patches
        parts = (condition_B9C + self.modulation).unbind(1)
        (shift_s, scale_s, gate_s), (shift_t, scale_t, gate_t), (shift_m, scale_m, gate_m) = (
            parts[:3],
            parts[3:6],
            parts[6:],
        )
        width = x_BTC.shape[2]
        normed = self._norm(x_BTC, shift_s, scale_s).reshape(-1, patches, width)
        x_BTC = x_BTC + gate_s[:, None] * self.space(normed).reshape(-1, frames * patches, width)
        x_BTC = x_BTC + self.text(x_BTC, states_BSC)
        normed = self._norm(x_BTC, shift_t, scale_t).reshape(-1, frames, patches, width).transpose(1, 2)
        mixed = self.time(normed.reshape(-1, frames, width)).reshape(-1, patches, frames, width).transpose(1, 2)
        x_BTC = x_BTC + gate_t[:, None] * mixed.reshape(-1, frames * patches, width)
        out_BTC: Tensor = x_BTC + gate_m[:, None] * self.mlp(self._norm(x_BTC, shift_m, scale_m))
        return out_BTC

    def _norm(self, x_BTC: Tensor, shift_BC: Tensor, scale_BC: Tensor) -> Tensor:
        return ops.ada_layer_norm(x_BTC, shift_BC, scale_BC, eps=self.config.layer_norm_eps)


class VideoTransformer(nn.Module):
    """sample [B, C, F, H, W], timestep [B], encoder_states [B, S, context] -> out_sample, of sample's shape."""

    def __init__(self, config: VideoTransformerComponent) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.latent_channels * config.patch_size**2
        self.patch_embedding = nn.Linear(patch, width)
        self.time_input = nn.Linear(config.time_size, width)
        self.time_output = nn.Linear(width, width)
        self.condition = nn.Linear(width, 9 * width)
        self.context = nn.Linear(config.context_size, width)
        self.layers = nn.ModuleList(SpaceTimeLayer(config) for _ in range(config.num_layers))
        self.modulation = nn.Parameter(torch.empty(2, width))
        self.output = nn.Linear(width, patch)

    def forward(self, sample_BCFHW: Tensor, timestep_B: Tensor, states_BSC: Tensor) -> Tensor:
        waves_BE = make_sinusoids(timestep_B[:, None], self.config.time_size, sample_BCFHW.dtype)[:, 0]
        time_BC = self.time_output(functional.silu(self.time_input(waves_BE)))
        condition_B9C = self.condition(functional.silu(time_BC)).unflatten(1, (9, -1))
        x_BTC = self.patch_embedding(self.cut(sample_BCFHW)) + self.make_positions(sample_BCFHW.dtype)
        context_BSC = self.context(states_BSC)
        for layer in self.layers:
            x_BTC = layer(x_BTC, condition_B9C, context_BSC)
        shift_BC, scale_BC = (time_BC[:, None] + self.modulation).unbind(1)
        x_BTC = self.output(ops.ada_layer_norm(x_BTC, shift_BC, scale_BC, eps=self.config.layer_norm_eps))
        return self.join(x_BTC)

    def cut(self, sample_BCFHW: Tensor) -> Tensor:
        """Patches of every frame, frame by frame and row by row: [B, T, C patch patch]."""
        channels, frames, _, _ = self.config.latent_shape
        (rows, columns), patch = self.config.grid, self.config.patch_size
        parts = sample_BCFHW.reshape(-1, channels, frames, rows, patch, columns, patch)
        return parts.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, frames * rows * columns, channels * patch * patch)

    def join(self, x_BTC: Tensor) -> Tensor:
        """The inverse of `cut`."""
        channels, frames, height, width = self.config.latent_shape
        (rows, columns), patch = self.config.grid, self.config.patch_size
        parts = x_BTC.reshape(-1, frames, rows, columns, channels, patch, patch).permute(0, 4, 1, 2, 5, 3, 6)
        return parts.reshape(-1, channels, frames, height, width)

    def make_positions(self, dtype: torch.dtype) -> Tensor:
        """Sinusoids of frame, row and column, [T, C]: half for the place in a frame, and all of it for the frame."""
        (rows, columns), width = self.config.grid, self.config.hidden_size
        exact = torch.float64
        row = make_sinusoids(torch.arange(rows)[None], width // 2, exact)[0]
        column = make_sinusoids(torch.arange(columns)[None], width // 2, exact)[0]
        place = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=-1).flatten(
            0, 1
        )
        frame = make_sinusoids(torch.arange(self.config.num_frames)[None], width, exact)[0]
        return (frame[:, None] + place).flatten(0, 1).to(dtype)


class CausalConv3d(nn.Module):
    """A 3 by 3 by 3 convolution whose frames see no later one: the first frame stands for what was before it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=(0, 1, 1))

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        first = x_BCFHW[:, :, :1]
        out_BCFHW: Tensor = self.conv(torch.cat([first, first, x_BCFHW], dim=2))
        return out_BCFHW


class FrameNormSilu(nn.Module):
    """silu(GroupNorm(x)), the statistics of each frame its own."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.norm = GroupNormSilu(groups, channels, _EPS)

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        channels, frames, height, width = x_BCFHW.shape[1:]
        flat = x_BCFHW.transpose(1, 2).reshape(-1, channels, height, width)
        normed: Tensor = self.norm(flat)
        return normed.reshape(-1, frames, channels, height, width).transpose(1, 2)


class CausalResnet(nn.Module):
    """x + conv(norm(conv(norm(x)))), x through a Linear over channels where it widens."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNormSilu(groups, inputs), CausalConv3d(inputs, outputs)
        self.norm2, self.conv2 = FrameNormSilu(groups, outputs), CausalConv3d(outputs, outputs)
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        inner: Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x_BCFHW))))
        return inner + (x_BCFHW if self.shortcut is None else self.shortcut(x_BCFHW))


class Enlarge(nn.Module):
    """Twice the height and width; with `time`, every frame but the first twice; then a convolution."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        if self.time:
            first, rest = x_BCFHW[:, :, :1], x_BCFHW[:, :, 1:]
            batch, channels, _, height, width = rest.shape
            twice = rest[:, :, :, None].expand(-1, -1, -1, 2, -1, -1)
            x_BCFHW = torch.cat([first, twice.reshape(batch, channels, 2 * rest.shape[2], height, width)], dim=2)
        channels, frames, height, width = x_BCFHW.shape[1:]
        wide = functional.interpolate(x_BCFHW.flatten(1, 2), scale_factor=2.0, mode="nearest")
        out_BCFHW: Tensor = self.conv(wide.reshape(-1, channels, frames, 2 * height, 2 * width))
        return out_BCFHW


class VideoDecoder(nn.Module):
    """latents [B, C, F, H, W], unscaled -> frames [B, 3, F', H', W'] in about [-1, 1]."""

    def __init__(self, config: VideoDecoderComponent) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.input = CausalConv3d(config.latent_channels, widths[0])
        self.middle = nn.ModuleList(CausalResnet(widths[0], widths[0], groups) for _ in range(2))
        self.stages = nn.ModuleList()
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for _ in range(config.layers_per_block):
                self.stages.append(CausalResnet(inputs, outputs, groups))
                inputs = outputs
            if stage < len(widths) - 1:
                self.stages.append(Enlarge(outputs, time=stage < config.num_time_doublings))
        self.output_norm = FrameNormSilu(groups, widths[-1])
        self.output = CausalConv3d(widths[-1], 3)

    def forward(self, latents_BCFHW: Tensor) -> Tensor:
        x_BCFHW = self.input(latents_BCFHW)
        for block in (*self.middle, *self.stages):
            x_BCFHW = block(x_BCFHW)
        frames_B3FHW: Tensor = self.output(self.output_norm(x_BCFHW))
        return frames_B3FHW
