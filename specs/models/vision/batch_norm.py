"""BatchNorm with stored statistics, and the convolution before it, which is one product with it at inference.

    s (W x - mean) + bias  =  (s W) x + (bias - s mean)        s = weight / sqrt(variance + eps)

The module keeps the two apart, as checkpoints and papers have them; `exporters/passes/fold_batch_norm.py` makes them
one in every typed graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components import Activation
from specs.models.layers import activate

_EPS = 1e-5


class BatchNorm(nn.Module):
    """Ioffe and Szegedy 2015, with the statistics of training: nothing here depends on the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.mean = nn.Parameter(torch.empty(channels))
        self.variance = nn.Parameter(torch.empty(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.batch_norm(x_BCHW, self.mean, self.variance, self.weight, self.bias, eps=_EPS)


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation; height and width stay where the stride is 1.

    Args:
        activation: None: what follows is a sum.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: Activation | None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel_size,
            stride=stride,
            padding=(kernel_size - 1) // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = BatchNorm(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.norm(self.conv(x_BCHW))
        return y_BCHW if self.activation is None else activate(y_BCHW, self.activation)
