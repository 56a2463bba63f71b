"""What the layers of convolutional and diffusion models cost: parameters, multiply-accumulates, and values held.

A component walks its own structure once and adds these up, so that its parameters, MACs and memory agree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one layer, or of several one after the other: `a + b` sums parameters and MACs, and keeps the larger peak.

    Args:
        macs: multiply-accumulates for one sample.
        peak: values that one sample's forward holds at the widest place.
    """

    parameters: int = 0
    macs: int = 0
    peak: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs, max(self.peak, other.peak))


def cost_conv(inputs: int, outputs: int, kernel: int, places: int) -> Cost:
    """A square convolution with bias that writes `places` positions."""
    weights = inputs * outputs * kernel * kernel
    return Cost(weights + outputs, weights * places, (inputs + outputs) * places)


def cost_conv_norm(inputs: int, outputs: int, kernel: int, places: int, *, groups: int = 1) -> Cost:
    """A square convolution without bias and a BatchNorm: scale, bias, mean and variance of each channel."""
    weights = inputs // groups * outputs * kernel * kernel
    return Cost(weights + 4 * outputs, weights * places, (inputs + outputs) * places)


def cost_conv1d(inputs: int, outputs: int, kernel: int, places: int, *, groups: int = 1, bias: bool = True) -> Cost:
    """A convolution over time that writes `places` positions; a transposed one that writes them has these costs too."""
    weights = inputs * outputs * kernel // groups
    return Cost(weights + bias * outputs, weights * places, (inputs + outputs) * places)


def cost_linear(inputs: int, outputs: int, places: int = 1, *, bias: bool = True) -> Cost:
    """A Linear over `places` rows."""
    return Cost(inputs * outputs + bias * outputs, inputs * outputs * places, (inputs + outputs) * places)


def cost_norm(channels: int) -> Cost:
    """Scale and bias of a norm."""
    return Cost(2 * channels)


def cost_attention(width: int, context: int, places: int, keys: int, heads: int, *, bias: bool) -> Cost:
    """Queries over `places` rows of `width`, keys and values over `keys` rows of `context`; the output has a bias."""
    projections = (
        cost_linear(width, width, places, bias=bias)
        + cost_linear(context, width, keys, bias=bias)
        + cost_linear(context, width, keys, bias=bias)
        + cost_linear(width, width, places)
    )
    scores = Cost(0, 2 * width * places * keys, heads * places * keys + 4 * width * places)
    return projections + scores


def cost_resnet(inputs: int, outputs: int, condition: int, places: int) -> Cost:
    """Two norms and 3 by 3 convolutions, a projected condition (0: none), a 1 by 1 shortcut where widths differ."""
    cost = cost_norm(inputs) + cost_conv(inputs, outputs, 3, places)
    cost += cost_norm(outputs) + cost_conv(outputs, outputs, 3, places)
    if condition:
        cost += cost_linear(condition, outputs)
    if inputs != outputs:
        cost += cost_conv(inputs, outputs, 1, places)
    return cost + Cost(peak=(inputs + 2 * outputs) * places)
