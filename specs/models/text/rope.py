"""Rotary positions (Su et al. 2021): each pair of a head's channels is turned by position * frequency.

    frequency_p = theta^(-2p / D), changed by `rope_scaling`;  (x_p, x_p+D/2) -> turned by position * frequency_p

Frequencies are rounded to float32 and multiplied with positions in float32, step by step as the published
implementations do: at position 30,000 the rounding of a frequency turns a pair by 1e-3, and checkpoints were trained
with exactly that.

Shape letters: B batch, T tokens, H heads, D head dim, P rotary pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from specs.components.text.rope import Llama3Scaling, LongScaling, RopeScaling, YarnScaling


class Angles(NamedTuple):
    """Cosines and sines, each [B, 1, T, P]."""

    cos: Tensor
    sin: Tensor


def list_frequencies(theta: float, width: int, scaling: RopeScaling | None = None) -> tuple[float, ...]:
    """Radians a position of each of `width` / 2 pairs, as float32 values. To be called before anything is traced."""
    exponent = torch.arange(0, width, 2, device="cpu").float() / width
    period = theta**exponent
    if isinstance(scaling, LongScaling):
        frequency = 1.0 / (torch.tensor(scaling.factors, device="cpu") * period)
    elif isinstance(scaling, YarnScaling):
        frequency = _ramp_frequencies(period, theta, width, scaling)
    elif isinstance(scaling, Llama3Scaling):
        frequency = _blend_frequencies(1.0 / period, scaling)
    else:
        frequency = 1.0 / period / (scaling.factor if scaling else 1.0)
    return tuple(frequency.tolist())


def _ramp_frequencies(period: Tensor, theta: float, width: int, scaling: YarnScaling) -> Tensor:
    """YaRN (Peng et al. 2023), eq. 23: from plain to stretched between two channels."""

    def find_channel(turns: float) -> float:
        """The channel that turns so often over the original length."""
        return width * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = find_channel(scaling.beta_fast), find_channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / ((high - low) or 0.001)
    plain = 1 - ramp.clamp(0, 1)
    return 1.0 / (scaling.factor * period) * (1 - plain) + 1.0 / period * plain


def _blend_frequencies(frequency: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones are not, those between a blend."""
    wavelength = 2 * math.pi / frequency
    longest = scaling.original_positions / scaling.low_freq_factor
    shortest = scaling.original_positions / scaling.high_freq_factor
    stretched = torch.where(wavelength > longest, frequency / scaling.factor, frequency)
    share = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blend = (1 - share) * stretched / scaling.factor + share * stretched
    return torch.where((wavelength < shortest) | (wavelength > longest), stretched, blend)


def compute_angles(
    position_BT: Tensor, frequencies: tuple[float, ...], dtype: torch.dtype, *, factor: float = 1.0
) -> Angles:
    """Cosines and sines, times `factor`: at least in float32, and rounded to `dtype` at the end.

    float16 cannot hold a position above 2048 exactly, and the product matters modulo 2 pi.
    """
    exact = torch.promote_types(dtype, torch.float32)
    frequency_P = torch.tensor(frequencies, dtype=exact)
    angle_B1TP = (position_BT.to(exact)[:, :, None] * frequency_P)[:, None]
    cos_B1TP, sin_B1TP = angle_B1TP.cos(), angle_B1TP.sin()
    if factor != 1.0:
        cos_B1TP, sin_B1TP = cos_B1TP * factor, sin_B1TP * factor
    return Angles(cos_B1TP.to(dtype), sin_B1TP.to(dtype))


def rotate(x_BHTD: Tensor, angles: Angles) -> Tensor:
    """Turn each pair of channels (p, p + P) by its angle: Llama's rotate-half order, not GPT-J's interleaved one.

    Channels from 2 P on, where there are any, have no position.
    """
    pairs = angles.cos.shape[-1]
    rest = x_BHTD.shape[-1] - 2 * pairs
    first_BHTP, second_BHTP, *still = torch.split(x_BHTD, [pairs, pairs, *([rest] if rest else [])], dim=-1)
    turned = [
        first_BHTP * angles.cos - second_BHTP * angles.sin,
        second_BHTP * angles.cos + first_BHTP * angles.sin,
    ]
    return torch.cat([*turned, *still], dim=-1)
