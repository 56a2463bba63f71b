"""SEANet's parts as EnCodec uses them (Tagliasacchi et al. 2020; Défossez et al. 2022): padded convolutions in time.

    residual: x -> shortcut(x) + conv_1(elu(conv_k(elu(x))))
    lstm:     x -> x + lstm(x)

Shape letters: B batch, C channels, T time, H LSTM state channels.

Weight norm is folded into the weights when a checkpoint is read. Time is dynamic: a convolution near the codes may be
longer than its input, and its reflected border is then made of what there is, and of zeros, as the published code does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components.audio.encodec import EncodecComponent


class Convolution(nn.Module):
    """A convolution of stride 1 that keeps the length: all of its border on the left when causal, else on both sides.

    Args:
        shortest: the fewest positions that its input can have.
    """

    def __init__(
        self, config: EncodecComponent, inputs: int, outputs: int, kernel: int, *, shortest: int, dilation: int = 1
    ) -> None:
        super().__init__()
        self.pad_mode, self.shortest = config.pad_mode, shortest
        border = (kernel - 1) * dilation
        self.right = 0 if config.causal else border // 2
        self.left = border - self.right
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.norm = make_norm(config, outputs)

    def forward(self, x_BCT: Tensor) -> Tensor:
        out_BCT: Tensor = self.conv(self._pad(x_BCT))
        if self.norm is not None:
            out_BCT = self.norm(out_BCT)
        return out_BCT

    def _pad(self, x_BCT: Tensor) -> Tensor:
        if not self.left:
            return x_BCT
        if self.pad_mode == "reflect" and self.shortest <= self.left:
            return pad_reflect_any(x_BCT, self.left, self.right)
        return functional.pad(x_BCT, (self.left, self.right), mode=self.pad_mode)


class StridedConvolution(nn.Module):
    """T positions become ceil(T / ratio): where `ratio` does not divide T, the border on the right is wider."""

    def __init__(self, config: EncodecComponent, inputs: int, outputs: int, ratio: int) -> None:
        super().__init__()
        self.pad_mode, self.ratio = config.pad_mode, ratio
        self.right = 0 if config.causal else ratio // 2
        self.left = ratio - self.right
        self.conv = nn.Conv1d(inputs, outputs, 2 * ratio, ratio)
        self.norm = make_norm(config, outputs)

    def forward(self, x_BCT: Tensor) -> Tensor:
        right = self.right + self.ratio - 1  # for the longest way to the next multiple; no stride reaches what is over
        if self.pad_mode == "reflect":
            padded_BCT = pad_reflect_any(x_BCT, self.left, right, ratio=self.ratio)
        else:
            padded_BCT = functional.pad(x_BCT, (self.left, right), mode=self.pad_mode)
        out_BCT: Tensor = self.conv(padded_BCT)
        if self.norm is not None:
            out_BCT = self.norm(out_BCT)
        return out_BCT


class TransposedConvolution(nn.Module):
    """T positions become T * ratio; what a kernel of 2 * ratio adds is cut, on the right when causal."""

    def __init__(self, config: EncodecComponent, inputs: int, outputs: int, ratio: int) -> None:
        super().__init__()
        self.right = math.ceil(ratio * config.trim_right_ratio) if config.causal else ratio // 2
        self.left = ratio - self.right
        self.conv = nn.ConvTranspose1d(inputs, outputs, 2 * ratio, ratio)
        self.norm = make_norm(config, outputs)

    def forward(self, x_BCT: Tensor) -> Tensor:
        out_BCT: Tensor = self.conv(x_BCT)
        if self.norm is not None:
            out_BCT = self.norm(out_BCT)
        return out_BCT[:, :, self.left : -self.right or None]  # a constant: RTX 1.7 fails on a computed end


class ResidualUnit(nn.Module):
    """Two convolutions, the first one dilated, beside a shortcut."""

    def __init__(self, config: EncodecComponent, width: int, *, dilation: int, shortest: int) -> None:
        super().__init__()
        inner = width // config.compress
        self.expand = Convolution(
            config, width, inner, config.residual_kernel_size, dilation=dilation, shortest=shortest
        )
        self.project = Convolution(config, inner, width, 1, shortest=shortest)
        self.shortcut = Convolution(config, width, width, 1, shortest=shortest) if config.conv_shortcut else None

    def forward(self, x_BCT: Tensor) -> Tensor:
        inner_BCT: Tensor = self.project(functional.elu(self.expand(functional.elu(x_BCT))))
        around_BCT: Tensor = x_BCT if self.shortcut is None else self.shortcut(x_BCT)
        return around_BCT + inner_BCT


class LstmLayer(nn.Module):
    """The parameters of one layer, gates in ONNX's order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(4 * width, width))
        self.state_weight = nn.Parameter(torch.empty(4 * width, width))
        self.bias = nn.Parameter(torch.empty(8 * width))

    def forward(self, x_TBC: Tensor) -> Tensor:
        return ops.lstm(x_TBC, self.input_weight, self.state_weight, self.bias)


class ResidualLstm(nn.Module):
    """x + lstm(x) over time."""

    def __init__(self, config: EncodecComponent) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LstmLayer(config.widest) for _ in range(config.num_lstm_layers))

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_TBC = state_TBC = x_BCT.permute(2, 0, 1)
        for layer in self.layers:
            state_TBC = layer(state_TBC)
        return (state_TBC + x_TBC).permute(1, 2, 0)


def make_norm(config: EncodecComponent, channels: int) -> nn.GroupNorm | None:
    """`time_group_norm`: one group over all channels and all of time."""
    return nn.GroupNorm(1, channels) if config.norm_type == "time_group_norm" else None


def pad_reflect_any(x_BCT: Tensor, left: int, right: int, *, ratio: int = 1) -> Tensor:
    """Reflected borders for any T >= 1.

    Where T does not reach beyond the larger border, zeros are put behind x until it does; they take part in the
    reflection, and as many positions are cut off the end: EnCodec's own rule.

    Args:
        ratio: when `ratio` divides T, the last `ratio` - 1 positions of `right` count for nothing, and so on; they are
            there for the other lengths, and no stride reaches them.
    """
    mirrored_BCL = functional.pad(x_BCT, (0, left))[:, :, 1 : left + 1].flip(2)
    if not right:
        return torch.cat([mirrored_BCL, x_BCT], dim=2)
    time = x_BCT.shape[2]
    step_R = torch.arange(right)
    time_R = step_R * 0 + time
    border_R = torch.remainder(-time_R, ratio) + (right - ratio + 1)
    last_R = torch.maximum(time_R, border_R.clamp(min=left) + 1) - 1  # of the lengthened x
    place_R = last_R - (last_R - (step_R + time)).abs()  # reflected where it lies beyond
    inside_R = (place_R >= 0) & (place_R < time)
    tail_BCR = x_BCT.index_select(2, torch.where(inside_R, place_R, 0)) * inside_R
    return torch.cat([mirrored_BCL, x_BCT, tail_BCR], dim=2)
