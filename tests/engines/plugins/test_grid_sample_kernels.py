"""The plugin's CUDA kernels, compiled for the host, against torch: every mode, padding, alignment, type and layout.

`cuda_on_host.h` runs each thread of each block in turn. What this cannot show is what only a GPU has: occupancy,
caches, and the rounding of fused multiply-adds; `benchmarks/bench_grid_sample_3d.py` compares the numbers there again.
"""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.engines.plugins.kernels_on_host import compile_for_host, compile_mutant

_FILES = ("grid_sample/sample_planes.cu", "grid_sample/sample_voxels.cu", "grid_sample/grid_sample_3d.cpp")
_MODES, _PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")
_CASES = list(itertools.product(_MODES, _PADDINGS, (False, True)))
#: Type -> its number in grid_sample_3d.h, and the largest difference: one rounding of the result, values up to 4.
_TYPES = {torch.float32: (0, 3e-6), torch.float16: (1, 2e-3), torch.bfloat16: (2, 1.6e-2)}
Case = tuple[str, str, bool]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_for_host(tmp_path_factory.mktemp("kernels"), _FILES)


def _run(library: ctypes.CDLL, x: torch.Tensor, grid: torch.Tensor, case: Case, *, voxels: bool) -> torch.Tensor:
    """[n, c, d, h, w] in and out; with `voxels` in the layout of TensorRT's 3-D convolutions, channels padded."""
    mode, padding, align = case
    channels = x.shape[1]
    stored = x.contiguous()
    if voxels:
        padded = channels if x.dtype == torch.float32 else -channels % 8 + channels
        stored = functional.pad(x.permute(0, 2, 3, 4, 1), (0, padded - channels)).contiguous()
    count = stored.shape[-1] if voxels else channels
    places = tuple(grid.shape[1:4])
    out = torch.full((x.shape[0], *places, count) if voxels else (x.shape[0], count, *places), torch.nan).to(x.dtype)
    sizes = (ctypes.c_int32 * 8)(x.shape[0], count, *x.shape[2:], *places)
    options = (ctypes.c_int32 * 5)(
        _MODES.index(mode), _PADDINGS.index(padding), int(align), _TYPES[x.dtype][0], int(voxels)
    )
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (stored, grid.contiguous(), out))
    assert library.metagenGridSample3d(sizes, options, *pointers, None) == 0
    return out.permute(0, 4, 1, 2, 3)[:, :channels] if voxels else out


def _make_tensors(dtype: torch.dtype, channels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, 3, 5, 7, generator=generator).to(dtype)
    grid = torch.randn(2, 3, 4, 9, 3, generator=generator) * 1.5
    grid[0, 0] *= 9
    return x, grid


def _sample(x: torch.Tensor, grid: torch.Tensor, case: Case) -> torch.Tensor:
    mode, padding, align = case
    return functional.grid_sample(x.float(), grid, mode=mode, padding_mode=padding, align_corners=align)


def _error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).abs().max())


@pytest.mark.parametrize("voxels", [False, True])
@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("case", _CASES)
def test_the_kernels_answer_as_torch(kernels: ctypes.CDLL, case: Case, dtype: torch.dtype, voxels: bool) -> None:
    for channels in (1, 5, 36):  # one pack, a padded one, more than the lanes of a block
        x, grid = _make_tensors(dtype, channels)
        got = _run(kernels, x, grid, case, voxels=voxels)
        assert _error(got, _sample(x, grid, case)) < _TYPES[dtype][1]


@pytest.mark.parametrize("voxels", [False, True])
@pytest.mark.parametrize("case", _CASES)
def test_the_comparison_kills_mutants(kernels: ctypes.CDLL, case: Case, voxels: bool) -> None:
    x, grid = _make_tensors(torch.float32)
    got = _run(kernels, x, grid, case, voxels=voxels)
    for other in _CASES:
        assert other == case or _error(got, _sample(x, grid, other)) > 0.1, other
    assert _error(_run(kernels, x, grid.flip(-1), case, voxels=voxels), _sample(x, grid, case)) > 0.1, "x and z swapped"


def test_the_comparison_kills_a_reflection_off_by_half(tmp_path: Path) -> None:
    mutant = compile_mutant(tmp_path, _FILES, "reflect(position, voxels, -.5f)", "reflect(position, voxels, 0.f)")
    x, grid = _make_tensors(torch.float32)
    case = ("bilinear", "reflection", False)
    assert _error(_run(mutant, x, grid, case, voxels=False), _sample(x, grid, case)) > 0.1


@pytest.mark.parametrize("voxels", [False, True])
@pytest.mark.parametrize("case", _CASES)
def test_positions_that_are_no_places_read_nothing_outside(kernels: ctypes.CDLL, case: Case, voxels: bool) -> None:
    x, grid = _make_tensors(torch.float32)
    for value in (1e30, -1e30, float("inf"), float("-inf"), float("nan")):
        got = _run(kernels, x, torch.full_like(grid, value), case, voxels=voxels)
        assert case[1] != "zeros" or not got.any()


def test_sizes_beyond_the_kernels_are_refused(kernels: ctypes.CDLL) -> None:
    sizes = (ctypes.c_int32 * 8)(1, 1, 1 << 11, 1 << 11, 1 << 11, 1, 1, 1)
    assert (
        kernels.metagenGridSample3d(sizes, (ctypes.c_int32 * 5)(), None, None, None, None) == 1
    )  # cudaErrorInvalidValue
