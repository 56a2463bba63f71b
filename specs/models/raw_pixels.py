"""Raw pictures and films inside the graph: resizing and sampling in operators that every compiler takes.

    pixels [B, H, W, C] uint8 --rows [h, H], columns [w, W]--> image [B, C, h, w] in [0, 1]

A resize that is linear in the pixels, and the same in every row and column, is two matrix products: one from the left,
one from the right. Their weights depend on the sizes alone and are computed in the graph from H and W, so that one
graph takes pictures of any size; TensorRT has no antialiased Resize. The filter is the triangle of Pillow's BILINEAR
and of torch's `interpolate(mode="bilinear", antialias=True)`: shrinking widens it, so that every pixel counts. Pillow
rounds to 8 bits between the products and after them, which this does not: it differs from Pillow by at most one level.

Shape letters: B batch, N frames, F sampled frames, H and W the raw size, h and w the model's, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RawPixels(nn.Module):
    """pixels [B, H, W, C] uint8 -> image [B, C, h, w] float32 in [0, 1], stretched whatever the proportions."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, pixels_BHWC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        # TensorRT takes bytes into a Cast and nowhere else
        image_BCHW = (pixels_BHWC.to(dtype) * (1 / 255)).permute(0, 3, 1, 2)
        rows_hH = make_resize_matrix(pixels_BHWC.shape[1], self.height, dtype)
        columns_wW = make_resize_matrix(pixels_BHWC.shape[2], self.width, dtype)
        return rows_hH @ image_BCHW @ columns_wW.T


def make_resize_matrix(source: int, target: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights [target, source] of a triangle filter, widened by the factor of shrinking; rows sum to 1."""
    scale_11 = torch.full((1, 1), 1.0, dtype=dtype) * source / target  # a tensor: `source` is only known at run time
    centre_h1 = (torch.arange(target, dtype=dtype)[:, None] + 0.5) * scale_11 - 0.5
    distance_hH = (torch.arange(source, dtype=dtype)[None, :] - centre_h1).abs()
    weights_hH = (1 - distance_hH / scale_11.clamp(min=1.0)).clamp(min=0)
    return weights_hH / weights_hH.sum(dim=1, keepdim=True)


def find_compute_dtype(module: nn.Module) -> torch.dtype:
    """What a module whose input is of bytes computes in: float64 in a float64 run, else float32."""
    return torch.float64 if next(module.parameters()).dtype == torch.float64 else torch.float32


class FrameSampler(nn.Module):
    """frames [B, N, H, W, C] -> [B, F, H, W, C]: the middle ones of F equal parts; with N < F some stand twice."""

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames

    def forward(self, frames_BNHWC: Tensor) -> Tensor:
        part_F = 2 * torch.arange(self.num_frames) + 1
        index_F = part_F * frames_BNHWC.shape[1] // (2 * self.num_frames)
        return frames_BNHWC.index_select(1, index_F)
