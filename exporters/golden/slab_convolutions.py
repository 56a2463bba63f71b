"""Convolutions in float64 without their unfolded inputs in memory.

torch has float64 kernels that first write every window of the whole batch beside each other: kernel volume times
channels times places, 3 GB for one layer of an avatar that has 13 M parameters. Here a convolution runs a sample and a
slab of its first spatial axis at a time, which adds up the same products in the same order.

    out[:, :, a:b] = conv(padded x[:, :, stride a : stride (b - 1) + dilation (kernel - 1) + 1])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_UNFOLDED_BYTES = 64 << 20


class SlabConvolutions(TorchFunctionMode):
    """Inside, a float64 convolution that would unfold more than 64 MB runs in slabs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rank = _CONVOLUTIONS.get(func)
        if rank is None or args[0].dtype != torch.float64 or args[0].dim() != rank + 2:
            return func(*args, **kwargs)
        return _convolve(func, rank, *args, **kwargs)


def _convolve(
    conv: Callable[..., Tensor],
    rank: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    places = math.prod(x.shape[2:])  # at least as many as are written, where nothing is padded beyond the input
    if isinstance(padding, str) or len(x) * places * weight[0].numel() * x.itemsize <= _UNFOLDED_BYTES:
        return conv(x, weight, bias, stride, padding, dilation, groups)
    strides, paddings, dilations = (_repeat(value, rank) for value in (stride, padding, dilation))
    x = functional.pad(x, (*[0] * (2 * rank - 2), paddings[0], paddings[0]))
    reach = dilations[0] * (weight.shape[2] - 1) + 1
    count = (x.shape[2] - reach) // strides[0] + 1
    step = max(1, count * _UNFOLDED_BYTES // (places * weight[0].numel() * x.itemsize))
    samples = []
    for index in range(len(x)):
        sample = x[index : index + 1]
        slabs = []
        for start in range(0, count, step):
            end = min(start + step, count)
            part = sample[:, :, strides[0] * start : strides[0] * (end - 1) + reach]
            slabs.append(conv(part, weight, bias, strides, (0, *paddings[1:]), dilations, groups))
        samples.append(torch.cat(slabs, dim=2))
    return torch.cat(samples)


def _repeat(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * rank if len(sizes) == 1 else sizes
