"""A real-time avatar: keypoints carry the motion, a warped feature volume the looks.

    appearance   picture -> feature volume [B, C, D, H, W] and canonical keypoints, once an identity
    motion       samples of one frame, state -> rotation, translation, expression -> moved keypoints, state
    renderer     every keypoint proposes a motion of the volume; a network mixes them; the warped volume is drawn

The design is that of face-vid2vid (Wang et al. 2021, "One-Shot Free-View Neural Talking-Head Synthesis"), driven by
sound instead of a second video: its keypoint detector reads the source only, and a causal WaveNet (van den Oord et al.
2016) stands in for the driving video's motion. Norms are group norms, which behave the same at every batch size.

Shape letters: B batch, C channels, D depth, H height, W width (of the volume), K keypoints, M = K + 1 motions (the
first: nothing moves), N = D H W voxels, L samples, T mel frames. Positions are (x, y, z) in [-1, 1] along (W, H, D).

Not here: the head-pose and expression losses, and everything else that only training needs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components.avatar import AppearanceComponent, MotionComponent, RendererComponent
from specs.models.audio.mel import MelSpectrogram

_EPS = 1e-5
_QUIETEST = 1e-5  # power below which a mel band counts as silent
_LARGEST_TURN = math.pi / 4  # of the head, about each axis
_LARGEST_SHIFT = 0.5  # of the head, in half pictures
_LARGEST_EXPRESSION = 0.2  # of a keypoint, in half pictures


class NormSiluConv(nn.Module):
    """conv(silu(group_norm(x))), in two or three dimensions."""

    def __init__(self, norm_size: int, conv: nn.Conv2d | nn.Conv3d, *, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.GroupNorm(groups, norm_size, eps=_EPS)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(ops.group_norm_silu(x, self.norm.weight, self.norm.bias, groups=self.groups, eps=_EPS))
        return out


class ResidualBlock(nn.Module):
    """x + two norm-silu-conv, width kept."""

    def __init__(self, first: NormSiluConv, second: NormSiluConv) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


class Appearance(nn.Module):
    """image [B, 3, H', W'] in [0, 1] -> volume [B, C, D, H, W], keypoints [B, K, 3]."""

    def __init__(self, config: AppearanceComponent) -> None:
        super().__init__()
        self.config = config
        groups, width = config.norm_num_groups, config.hidden_size
        self.input = nn.Conv2d(3, width, 7, padding=3)
        self.halvings = nn.ModuleList()
        for _ in range(config.num_halvings):
            self.halvings.append(
                NormSiluConv(width, nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), groups=groups)
            )
            width *= 2
        self.fold = NormSiluConv(width, nn.Conv2d(width, config.folded_channels, 1), groups=groups)
        channels = config.volume_channels

        def make_conv() -> NormSiluConv:
            return NormSiluConv(channels, nn.Conv3d(channels, channels, 3, padding=1), groups=groups)

        self.blocks = nn.ModuleList(ResidualBlock(make_conv(), make_conv()) for _ in range(config.num_blocks))
        self.keypoints = nn.Conv3d(channels, config.num_keypoints, 3, padding=1)

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        x_BCHW = self.input(2.0 * image_B3HW - 1.0)
        for halving in self.halvings:
            x_BCHW = halving(x_BCHW)
        volume_BCDHW = self.fold(x_BCHW).unflatten(1, (config.volume_channels, config.volume_depth))
        for block in self.blocks:
            volume_BCDHW = block(volume_BCDHW)
        heat_BKN = (self.keypoints(volume_BCDHW).flatten(2) / config.temperature).softmax(-1)
        positions_N3 = make_positions(volume_BCDHW).flatten(0, 2)
        return volume_BCDHW, heat_BKN @ positions_N3


class CausalLayer(nn.Module):
    """WaveNet's: tanh and sigmoid of one dilated convolution, then a residual and a skip output of one Linear."""

    def __init__(self, width: int, *, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, kernel_size, dilation=dilation)
        self.out = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x_BCT: Tensor, past_BCR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output, its skip output [B, C, T], and the inputs that the next call needs."""
        seen_BCT = torch.cat([past_BCR, x_BCT], dim=2)
        filter_BCT, gate_BCT = self.conv(seen_BCT).chunk(2, dim=1)
        residual_BCT, skip_BCT = self.out(filter_BCT.tanh() * gate_BCT.sigmoid()).chunk(2, dim=1)
        return x_BCT + residual_BCT, skip_BCT, seen_BCT[:, :, x_BCT.shape[2] :]


class Motion(nn.Module):
    """samples [B, L], keypoints [B, K, 3], past samples and layer inputs -> moved keypoints, and the same for next."""

    def __init__(self, config: MotionComponent) -> None:
        super().__init__()
        self.config = config
        self.mel = MelSpectrogram(config.mel)
        self.input = nn.Conv1d(config.mel.num_mels, config.hidden_size, 1)
        self.layers = nn.ModuleList(
            CausalLayer(config.hidden_size, kernel_size=config.kernel_size, dilation=2**layer)
            for layer in range(config.num_layers)
        )
        self.head = nn.Linear(config.hidden_size, 6 + 3 * config.num_keypoints)

    def forward(self, samples_BL: Tensor, keypoints_BK3: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        heard_BL = torch.cat([past[0], samples_BL], dim=1)
        x_BCT = self.input(self.mel(heard_BL).clamp(min=_QUIETEST).log())
        skips_BCT, states = torch.zeros_like(x_BCT), [heard_BL[:, samples_BL.shape[1] :]]
        for layer, past_BCR in zip(self.layers, past[1:], strict=True):
            x_BCT, skip_BCT, state = layer(x_BCT, past_BCR)
            skips_BCT = skips_BCT + skip_BCT
            states.append(state)
        pose = self.head(functional.silu(skips_BCT.mean(2)))
        return self._move(keypoints_BK3, pose), *states

    def _move(self, keypoints_BK3: Tensor, pose: Tensor) -> Tensor:
        """Turn and shift the head, and move each keypoint by itself."""
        pose = pose.tanh()
        angles_B3, shift_B3 = pose[:, :3], pose[:, 3:6]
        expression_BK3 = _LARGEST_EXPRESSION * pose[:, 6:].reshape(-1, self.config.num_keypoints, 3)
        turned_BK3 = keypoints_BK3 @ make_rotation(_LARGEST_TURN * angles_B3)
        moved_BK3: Tensor = turned_BK3 + _LARGEST_SHIFT * shift_B3[:, None] + expression_BK3
        return moved_BK3


class Renderer(nn.Module):
    """volume [B, C, D, H, W], keypoints and moved keypoints [B, K, 3] -> frame [B, 3, H', W'] in [0, 1]."""

    def __init__(self, config: RendererComponent) -> None:
        super().__init__()
        self.config = config
        flow, groups, motions = config.flow_size, config.norm_num_groups, config.num_keypoints + 1
        self.compress = nn.Conv3d(config.volume_channels, config.flow_channels, 1)
        self.flow_input = nn.Conv3d(config.motion_channels, flow, 3, padding=1)
        self.flow_block = NormSiluConv(flow, nn.Conv3d(flow, flow, 3, padding=1), groups=groups)
        self.mixture = NormSiluConv(flow, nn.Conv3d(flow, motions, 3, padding=1), groups=groups)
        self.occlusion = nn.Conv2d(flow * config.volume_depth, 1, 3, padding=1)
        width = config.hidden_size << config.num_doublings
        self.unfold = nn.Conv2d(config.volume_channels * config.volume_depth, width, 1)

        def make_conv(inputs: int, outputs: int) -> NormSiluConv:
            return NormSiluConv(inputs, nn.Conv2d(inputs, outputs, 3, padding=1), groups=groups)

        self.blocks = nn.ModuleList(
            ResidualBlock(make_conv(width, width), make_conv(width, width)) for _ in range(config.num_blocks)
        )
        self.doublings = nn.ModuleList()
        for _ in range(config.num_doublings):
            self.doublings.append(make_conv(width, width // 2))
            width //= 2
        self.output = NormSiluConv(width, nn.Conv2d(width, 3, 7, padding=3), groups=groups)

    def forward(self, volume_BCDHW: Tensor, keypoints_BK3: Tensor, moved_BK3: Tensor) -> Tensor:
        flow_BDHW3, occlusion_B1HW = self.mix_motions(volume_BCDHW, keypoints_BK3, moved_BK3)
        warped_BCDHW = ops.grid_sample_3d(volume_BCDHW, flow_BDHW3)
        x_BCHW = self.unfold(warped_BCDHW.flatten(1, 2)) * occlusion_B1HW
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        for doubling in self.doublings:
            x_BCHW = doubling(functional.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        frame_B3HW: Tensor = self.output(x_BCHW)
        return frame_B3HW.sigmoid()

    def mix_motions(self, volume_BCDHW: Tensor, keypoints_BK3: Tensor, moved_BK3: Tensor) -> tuple[Tensor, Tensor]:
        """Where each voxel of the new volume comes from, [B, D, H, W, 3], and how much of it is seen, [B, 1, H, W]."""
        motions = self.config.num_keypoints + 1
        positions_DHW3 = make_positions(volume_BCDHW)
        shifts_BM3 = functional.pad(keypoints_BK3 - moved_BK3, (0, 0, 1, 0))
        sources_BMDHW3 = positions_DHW3 + shifts_BM3[:, :, None, None, None]
        small_BCDHW = self.compress(volume_BCDHW)
        repeated = small_BCDHW[:, None].expand(-1, motions, -1, -1, -1, -1).flatten(0, 1)
        warped = ops.grid_sample_3d(repeated, sources_BMDHW3.flatten(0, 1))
        warped_BMCDHW = warped.reshape(-1, motions, *small_BCDHW.shape[1:])
        heat_BKDHW = self._spread(moved_BK3, positions_DHW3) - self._spread(keypoints_BK3, positions_DHW3)
        heat_BMDHW = functional.pad(heat_BKDHW, (0, 0, 0, 0, 0, 0, 1, 0))
        seen = torch.cat([heat_BMDHW[:, :, None], warped_BMCDHW], dim=2).flatten(1, 2)
        hidden_BCDHW = self.flow_block(self.flow_input(seen))
        mixture_BMDHW = self.mixture(hidden_BCDHW).softmax(1)
        flow_BDHW3 = (mixture_BMDHW[..., None] * sources_BMDHW3).sum(1)
        return flow_BDHW3, self.occlusion(hidden_BCDHW.flatten(1, 2)).sigmoid()

    def _spread(self, keypoints_BK3: Tensor, positions_DHW3: Tensor) -> Tensor:
        """exp(-|position - keypoint|^2 / 2 variance), [B, K, D, H, W]."""
        distance = (positions_DHW3 - keypoints_BK3[:, :, None, None, None]).square().sum(-1)
        return (distance * (-0.5 / self.config.variance)).exp()


def make_positions(volume_BCDHW: Tensor) -> Tensor:
    """(x, y, z) of every voxel's centre in [-1, 1], [D, H, W, 3], as `ops.grid_sample_3d` counts them."""
    depth, height, width = volume_BCDHW.shape[2:]
    z_D, y_H, x_W = ((torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1 for size in (depth, height, width))
    z, y, x = torch.meshgrid(z_D, y_H, x_W, indexing="ij")
    return torch.stack([x, y, z], dim=-1).to(volume_BCDHW.dtype)


def make_rotation(angles_B3: Tensor) -> Tensor:
    """Turns about x, then y, then z, for row vectors: [B, 3, 3]."""
    cos, sin = angles_B3.cos(), angles_B3.sin()
    one, zero = torch.ones_like(cos[:, 0]), torch.zeros_like(cos[:, 0])

    def stack(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)

    about_x = stack((one, zero, zero), (zero, cos[:, 0], sin[:, 0]), (zero, -sin[:, 0], cos[:, 0]))
    about_y = stack((cos[:, 1], zero, -sin[:, 1]), (zero, one, zero), (sin[:, 1], zero, cos[:, 1]))
    about_z = stack((cos[:, 2], sin[:, 2], zero), (-sin[:, 2], cos[:, 2], zero), (zero, zero, one))
    return about_x @ about_y @ about_z
