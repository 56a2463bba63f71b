"""Raw pictures and films inside the graph: resizing, cropping and sampling in operators that every compiler takes.

    pixels [B, H, W, C] uint8 --columns [w, W]--> --rows [h, H]--> image [B, C, h, w] in [0, 1]

A resize that is linear in the pixels, and the same in every row and column, is two matrix products: one from the right,
one from the left. A crop keeps some of their rows, so that what is cut off is never computed, and what lies outside the
picture is black. Their weights depend on the sizes alone and are computed in the graph from H and W, so that one graph
takes pictures of any size; TensorRT has no antialiased Resize. The filters are Pillow's, and bilinear and bicubic those
of torch's `interpolate(antialias=True)` as well: shrinking widens them, so that every pixel counts.

Pillow cuts to 0..255 after each product, which this does too where a filter overshoots, and rounds to 8 bits there,
which this does not: the result is within one level of Pillow's, and what rounds differently on another machine stays
small. Filters with a jump (nearest, box) are refused by the spec.

Shape letters: B batch, N frames, F sampled frames, H and W the raw size, h and w the model's, C channels, S source
pixels and t target pixels of one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from specs.components import PictureComponent
from specs.components.vision.picture_steps import PictureSteps, split_pair


class RawPixels(nn.Module):
    """pixels [B, H, W, C] uint8 -> image [B, C, h, w] float32 in [0, 1], by the steps of `config`."""

    def __init__(self, config: PictureComponent) -> None:
        super().__init__()
        self.steps, (self.height, self.width) = config.graph_steps, config.image

    def forward(self, pixels_BHWC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        # TensorRT takes bytes into a Cast and nowhere else
        image_BCHW = (pixels_BHWC.to(dtype) * (1 / 255)).permute(0, 3, 1, 2)
        if not self.steps.takes_any_size:
            return image_BCHW
        height, width = pixels_BHWC.shape[1:3]
        resized_11 = measure_resized(self.steps, make_number(height, dtype), make_number(width, dtype))
        rows_hH, columns_wW = (
            make_resize_matrix(size, target, one_11, resample=self.steps.resample, crops=self.steps.crop is not None)
            for size, target, one_11 in zip((height, width), (self.height, self.width), resized_11, strict=True)
        )
        across_BCHw = self._cut(image_BCHW @ columns_wW.T)
        return self._cut(rows_hH @ across_BCHw)

    def _cut(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.clamp(0, 1) if self.steps.resample in _OVERSHOOTING else image_BCHW


class RawTower(nn.Module):
    """pixels [B, H, W, C] uint8 -> what `inner` makes of the picture in [0, 1] and of the tower's size."""

    def __init__(self, inner: nn.Module, config: PictureComponent) -> None:
        super().__init__()
        self.raw, self.inner = RawPixels(config), inner

    def forward(self, pixels_BHWC: Tensor) -> Any:
        return self.inner(self.raw(pixels_BHWC, find_compute_dtype(self.inner)))


def take_pixels(module: nn.Module, config: PictureComponent) -> nn.Module:
    """The graph of a tower whose first input is a picture: of raw pixels where `config` says so."""
    return module if config.raw_shape is None else RawTower(module, config)


def make_number(size: int, dtype: torch.dtype) -> Tensor:
    """A size that is only known at run time, as a tensor [1, 1]."""
    return torch.full((1, 1), 1.0, dtype=dtype) * size


def measure_resized(steps: PictureSteps, height_11: Tensor, width_11: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width [1, 1] after the resize and before the crop, as a host counts them."""
    if steps.resize == "none" or steps.size is None:
        return height_11, width_11
    if steps.resize == "stretch":
        height, width = split_pair(steps.size)
        return torch.full_like(height_11, height), torch.full_like(width_11, width)
    edge = split_pair(steps.size)[0]
    shortest_11 = torch.minimum(height_11, width_11)
    # a half moves whole quotients off the border that a rounded division may cross, and no other one over it
    return tuple(((edge * side_11 + 0.5) / shortest_11).floor() for side_11 in (height_11, width_11))  # type: ignore[return-value]


def make_resize_matrix(source: int, target: int, resized_11: Tensor, *, resample: str, crops: bool) -> Tensor:
    """Weights [target, source] of the `target` pixels in the middle of `resized` ones; each row sums to 1.

    Target pixel i has its centre at (i + 1/2) source / resized in the source, whose pixel k has it at k + 1/2:
    distances in units of a filter that shrinking widens are (2k + 1) resized - (2i + 1) source over twice the larger of
    both. Both products are whole numbers that float32 holds, so that a weight is exact but for its last bits.

    Args:
        crops: `resized` may be more than `target`, or less; then rows outside are zero.
    """
    dtype = resized_11.dtype
    source_11, place_t1 = make_number(source, dtype), torch.arange(target, dtype=dtype)[:, None]
    if crops:
        place_t1 = place_t1 + ((resized_11 - target) / 2).floor()
    source_1S = torch.arange(source, dtype=dtype)[None, :]
    between_tS = (2 * source_1S + 1) * resized_11 - (2 * place_t1 + 1) * source_11
    weights_tS = _FILTERS[resample](between_tS.abs() / (2 * torch.maximum(source_11, resized_11)))
    total_t1 = weights_tS.sum(dim=1, keepdim=True)
    if not crops:
        return weights_tS / total_t1
    inside_t1 = (place_t1 >= 0) & (place_t1 < resized_11)
    one, zero = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)
    return torch.where(inside_t1, weights_tS, zero) / torch.where(inside_t1, total_t1, one)


def _weigh_bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _weigh_bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, as a polynomial of 1 and one of 2 that are cut where they end."""
    near, far = x.clamp(max=1), x.clamp(min=1, max=2)
    return ((1.5 * near - 2.5) * near * near + 1) + (((-0.5 * far + 2.5) * far - 4) * far + 2)


def _compute_sinc(x: Tensor) -> Tensor:
    angle = torch.where(x == 0, torch.ones((), dtype=x.dtype), x * math.pi)
    return torch.where(x == 0, torch.ones((), dtype=x.dtype), angle.sin() / angle)


def _weigh_hamming(x: Tensor) -> Tensor:
    x = x.clamp(max=1)
    return _compute_sinc(x) * (0.54 + 0.46 * (x * math.pi).cos())


def _weigh_lanczos(x: Tensor) -> Tensor:
    x = x.clamp(max=3)
    return _compute_sinc(x) * _compute_sinc(x / 3)


#: Pillow's filters that have no jump: distance in units of the filter -> weight.
_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": _weigh_bilinear,
    "hamming": _weigh_hamming,
    "bicubic": _weigh_bicubic,
    "lanczos": _weigh_lanczos,
}
#: Those with negative weights.
_OVERSHOOTING = ("bicubic", "lanczos")


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
