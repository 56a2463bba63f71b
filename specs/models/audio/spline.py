"""A monotone function made of pieces that are quotients of quadratics (Durkan et al. 2019), and its inverse.

Within [-bound, bound] it goes through knots whose distances and slopes are given; outside it leaves values as they are.

Shape letters: B batch, C channels, T time, P pieces, K = P + 1 knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 1e-3  # share of a piece's width and height, and a slope
_BEHIND = 1e-6  # so that the last knot itself lies in the last piece


def invert_spline(
    y_BCT: Tensor, widths_BCTP: Tensor, heights_BCTP: Tensor, slopes_BCTP: Tensor, *, bound: float
) -> Tensor:
    """x where the spline is y, [B, C, T].

    Args:
        widths_BCTP, heights_BCTP: before the softmax that makes shares of them.
        slopes_BCTP: of the P - 1 inner knots, before softplus; at both ends the slope is 1.
    """
    left_BCTK, widths_BCTP = _place_knots(widths_BCTP, bound)
    low_BCTK, heights_BCTP = _place_knots(heights_BCTP, bound)
    outer_BCT1 = torch.full_like(slopes_BCTP[..., :1], math.log(math.exp(1 - _SMALLEST) - 1))
    slopes_BCTK = _SMALLEST + functional.softplus(torch.cat([outer_BCT1, slopes_BCTP, outer_BCT1], dim=-1))
    inside_BCT = (y_BCT >= -bound) & (y_BCT <= bound)
    held_BCT = y_BCT.clamp(-bound, bound)
    bars_BCTK = torch.cat([low_BCTK[..., :-1], low_BCTK[..., -1:] + _BEHIND], dim=-1)
    piece_BCT1 = (held_BCT[..., None] >= bars_BCTK).long().sum(-1, keepdim=True) - 1

    def pick(values: Tensor) -> Tensor:
        return values.gather(-1, piece_BCT1)[..., 0]

    width, height, slope_in, slope_out = (
        pick(values) for values in (widths_BCTP, heights_BCTP, slopes_BCTK, slopes_BCTK[..., 1:])
    )
    mean_slope = pick(heights_BCTP / widths_BCTP)
    rise = held_BCT - pick(low_BCTK)
    bend = slope_in + slope_out - 2 * mean_slope
    a = height * (mean_slope - slope_in) + rise * bend
    b = height * slope_in - rise * bend
    c = -mean_slope * rise
    root = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(inside_BCT, root * width + pick(left_BCTK), y_BCT)


def _place_knots(raw_BCTP: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Places of the knots [B, C, T, K], from -bound to bound, and the distances between them [B, C, T, P]."""
    shares_BCTP = _SMALLEST + (1 - _SMALLEST * raw_BCTP.shape[-1]) * raw_BCTP.softmax(-1)
    inner_BCTQ = 2 * bound * shares_BCTP.cumsum(-1)[..., :-1] - bound
    end_BCT1 = torch.full_like(raw_BCTP[..., :1], bound)
    places_BCTK = torch.cat([-end_BCT1, inner_BCTQ, end_BCT1], dim=-1)
    return places_BCTK, places_BCTK[..., 1:] - places_BCTK[..., :-1]
