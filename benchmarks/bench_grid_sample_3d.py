"""The MetagenGridSample3D plugin's kernel on a GPU: its numbers against torch, then its time, torch's and a copy's.

    python benchmarks/bench_grid_sample_3d.py libmetagen_plugins.so

Needs torch with CUDA and the library (docs/engines.md, Plugins); TensorRT takes no part. A copy moves as many bytes as
the op reads and writes. `hot` repeats one call, whose data stays in the L2 cache; `cold` goes round enough calls that
it does not. Every time is the median of seven CUDA graphs of at least 40 calls.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

_MODES, _PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")
#: Type -> its number in grid_sample_3d.h, and the largest difference allowed: float32 positions of up to 64 voxels
#: are exact to 4e-6, neighbouring values differ by up to 8; half precision rounds the result.
_TYPES = {torch.float32: (0, 1e-4), torch.float16: (1, 4e-3), torch.bfloat16: (2, 3e-2)}
#: [N, C, D, H, W], read at as many positions: the features of a talking avatar, one and eight of them, a larger one.
_SIZES = ((1, 32, 16, 64, 64), (8, 32, 16, 64, 64), (1, 32, 16, 128, 128))
_COLD_BYTES = 400_000_000  # well beyond any L2 cache


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: a volume in one of the two layouts, a grid, and where the result goes."""

    x: torch.Tensor
    grid: torch.Tensor
    out: torch.Tensor
    voxels: bool


def run_plugin(library: ctypes.CDLL, call: Call, mode: str, padding: str, align: bool) -> torch.Tensor:
    """Enqueue the kernel on torch's stream."""
    n, *places = call.x.shape
    c, (d, h, w) = (places[-1], places[:-1]) if call.voxels else (places[0], places[1:])
    sizes = (ctypes.c_int32 * 8)(n, c, d, h, w, *call.grid.shape[1:4])
    kind = _TYPES[call.x.dtype][0]
    options = (ctypes.c_int32 * 5)(_MODES.index(mode), _PADDINGS.index(padding), align, kind, call.voxels)
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (call.x, call.grid, call.out))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    assert library.metagenGridSample3d(sizes, options, *pointers, stream) == 0
    return call.out


def make_call(volume: Sequence[int], dtype: torch.dtype, *, voxels: bool, grid: torch.Tensor) -> Call:
    """Random values; channels of half precision voxels must be a multiple of eight."""
    n, c, d, h, w = volume
    places = grid.shape[1:4]
    return Call(
        x=torch.randn((n, d, h, w, c) if voxels else (n, c, d, h, w), device="cuda").to(dtype),
        grid=grid,
        out=torch.empty((n, *places, c) if voxels else (n, c, *places), device="cuda", dtype=dtype),
        voxels=voxels,
    )


def make_warp(volume: Sequence[int]) -> torch.Tensor:
    """Every voxel's own position, moved smoothly by about three voxels."""
    n, _, *places = volume
    axes = [(torch.arange(size, device="cuda") * 2 + 1) / size - 1 for size in places]
    still = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    flow = torch.randn(n, 3, 4, 8, 8, device="cuda") * 0.1
    return (still + functional.interpolate(flow, size=places, mode="trilinear").permute(0, 2, 3, 4, 1)).contiguous()


def compare(library: ctypes.CDLL) -> dict[torch.dtype, float]:
    """The largest difference from torch over every mode, padding, alignment and layout; asserts limits and mutants."""
    torch.manual_seed(0)
    grid = torch.randn(2, 4, 5, 6, 3, device="cuda") * 1.5
    grid[0, 0] *= 9
    worst = dict.fromkeys(_TYPES, 0.0)
    for dtype, voxels in itertools.product(_TYPES, (False, True)):
        call = make_call((2, 16, 6, 7, 9), dtype, voxels=voxels, grid=grid)
        x = call.x.float().permute(0, 4, 1, 2, 3) if voxels else call.x.float()
        for mode, padding, align in itertools.product(_MODES, _PADDINGS, (False, True)):
            wanted = functional.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=align)
            other = functional.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=not align)
            got = run_plugin(library, call, mode, padding, align).float()
            got = got.permute(0, 4, 1, 2, 3) if voxels else got
            worst[dtype] = max(worst[dtype], float((got - wanted).abs().max()))
            assert float((got - other).abs().max()) > 0.1, "the comparison would not notice a flipped align_corners"
        assert worst[dtype] < _TYPES[dtype][1], (dtype, worst[dtype])
    return worst


def measure_us(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds a call, going round `calls`."""
    count = max(40, len(calls))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(count):
            calls[index % len(calls)]()
    graph.replay()
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / count * 1e3)
    return statistics.median(times)


def bench(library: ctypes.CDLL, volume: Sequence[int], dtype: torch.dtype, *, cold: bool) -> dict[str, float]:
    """Microseconds of a copy, of torch, and of the plugin in both layouts."""
    grid = make_warp(volume)
    moved = 2 * math.prod(volume) * dtype.itemsize + grid.numel() * 4
    rounds = max(2, _COLD_BYTES // moved) if cold else 1
    halves = [torch.empty((2, moved // 2), dtype=torch.uint8, device="cuda") for _ in range(rounds)]
    times = {"copy": measure_us([lambda pair=pair: pair[0].copy_(pair[1]) for pair in halves])}
    del halves
    for layout, voxels in (("planes", False), ("voxels", True)):
        calls = [make_call(volume, dtype, voxels=voxels, grid=grid.clone()) for _ in range(rounds)]
        times[layout] = measure_us([lambda c=c: run_plugin(library, c, "bilinear", "zeros", False) for c in calls])
        if not voxels:
            pairs = [(c.x, c.grid.to(dtype)) for c in calls]
            times["torch"] = measure_us([lambda p=p: functional.grid_sample(*p, align_corners=False) for p in pairs])
    return {**times, "moved": moved}


def main() -> None:
    """Print the comparison, then one row a size, type and state of the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libmetagen_plugins.so")
    library = ctypes.CDLL(parser.parse_args().library)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print("largest difference from torch:", {str(d): f"{e:.1e}" for d, e in compare(library).items()})
    print(
        "| volume | type | cache | MB | copy us | torch us | planes us | voxels us | voxels / copy | torch / voxels |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for volume, dtype, cold in itertools.product(_SIZES, (torch.float32, torch.float16), (False, True)):
        t = bench(library, volume, dtype, cold=cold)
        cache = "cold" if cold else "hot"
        print(
            f"| {list(volume)} | {str(dtype)[6:]} | {cache} | {t['moved'] / 1e6:.1f} | {t['copy']:.2f} |"
            f" {t['torch']:.2f} | {t['planes']:.2f} | {t['voxels']:.2f} | {t['copy'] / t['voxels']:.0%} |"
            f" {t['torch'] / t['voxels']:.2f}x |"
        )
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
