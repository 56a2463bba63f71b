"""Reading a volume at the positions of a grid: the eager meaning, the fake-tensor rule and the wrapper."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from specs.ops._plain import is_opened

SampleMode = Literal["bilinear", "nearest"]
PaddingMode = Literal["zeros", "border", "reflection"]

_MODES, _PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")


def _compute_grid_sample_3d(
    x_NCDHW: Tensor, grid_NDHW3: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    sampled = functional.grid_sample(
        x_NCDHW, grid_NDHW3, mode=mode, padding_mode=padding_mode, align_corners=align_corners
    )
    return sampled.contiguous()


@torch.library.custom_op("metagen::grid_sample_3d", _compute_grid_sample_3d, mutates_args=()).register_fake
def _grid_sample_3d_fake(
    x_NCDHW: Tensor, grid_NDHW3: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    return x_NCDHW.new_empty((*x_NCDHW.shape[:2], *grid_NDHW3.shape[1:4]))


def grid_sample_3d(
    x_NCDHW: Tensor,
    grid_NDHW3: Tensor,
    *,
    mode: SampleMode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """`torch.nn.functional.grid_sample` of a volume (spatial transformers, Jaderberg et al. 2015).

    Args:
        x_NCDHW: the volume, [N, C, D, H, W].
        grid_NDHW3: where each output voxel is read: (x, y, z) in [-1, 1] along (W, H, D), [N, D', H', W', 3]. Keep it
            float32: a float16 position is off by up to 1/64 voxel at a width of 64.
        mode: bilinear (over three axes, so trilinear), or nearest with ties to even.
        padding_mode: what lies outside: zeros, the border's values, or the volume mirrored.
        align_corners: whether -1 and 1 are the centres of the outermost voxels, or their outer faces.

    Returns:
        [N, C, D', H', W']. A position that is not finite gives an unspecified value.

    Raises:
        ValueError: an unknown mode, or shapes that do not fit.
    """
    if mode not in _MODES or padding_mode not in _PADDINGS:
        raise ValueError(
            f"grid_sample_3d takes mode {' or '.join(_MODES)} and padding_mode {', '.join(_PADDINGS)},"
            f" got {mode!r} and {padding_mode!r}"
        )
    if x_NCDHW.dim() != 5 or grid_NDHW3.dim() != 5 or grid_NDHW3.shape[-1] != 3:
        raise ValueError(
            "grid_sample_3d takes a volume [N, C, D, H, W] and a grid [N, D', H', W', 3],"
            f" got {list(x_NCDHW.shape)} and {list(grid_NDHW3.shape)}"
        )
    run = _compute_grid_sample_3d if is_opened() else torch.ops.metagen.grid_sample_3d
    result: Tensor = run(x_NCDHW, grid_NDHW3, mode, padding_mode, align_corners)
    return result
