"""A convolution in slabs is the convolution, and holds a part of what it would hold."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional

from exporters.golden import slab_convolutions
from exporters.golden.slab_convolutions import SlabConvolutions

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "1-D, dilated": (1, {"dilation": 3, "padding": 3}),
    "2-D": (2, {"padding": 1}),
    "2-D, strided": (2, {"stride": 2, "padding": (2, 1)}),
    "2-D, groups": (2, {"groups": 2, "padding": 1}),
    "3-D": (3, {"padding": 1}),
    "3-D, strided, unpadded in depth": (3, {"stride": (1, 2, 2), "padding": (0, 1, 1)}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("budget", [1, 3000, 40000])
def test_numbers_are_the_convolution_s(name: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab_convolutions, "_UNFOLDED_BYTES", budget)
    rank, options = CASES[name]
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *(11, 9, 8)[:rank], generator=generator, dtype=torch.float64)
    groups = options.get("groups", 1)
    weight = torch.randn(6, 4 // groups, *[3] * rank, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    wanted = convolve(x, weight, bias, **options)
    with SlabConvolutions():
        got = convolve(x, weight, bias, **options)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-14 * float(wanted.abs().max()) * 8)


def test_what_is_not_a_large_float64_convolution_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab_convolutions, "_convolve", lambda *_: pytest.fail("in slabs"))
    with SlabConvolutions():
        functional.conv2d(torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), padding=1)
        functional.conv2d(torch.randn(2, 5, 5).double(), torch.randn(3, 2, 3, 3).double())  # without a batch axis


_MEASURE = """
import contextlib, sys, torch
from torch.nn import functional
from exporters.golden.slab_convolutions import SlabConvolutions

def read_peak_mb():  # of this program; getrusage's is its parent's, where that was larger when it was forked
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

x, weight = torch.ones(1, 64, 16, 64, 64, dtype=torch.float64), torch.ones(4, 64, 3, 3, 3, dtype=torch.float64)
before = read_peak_mb()
with SlabConvolutions() if sys.argv[1] == "slabs" else contextlib.nullcontext():
    assert float(functional.conv3d(x, weight, padding=1)[0, 0, 8, 32, 32]) == 27 * 64
print(read_peak_mb() - before)
"""


@pytest.mark.parametrize(("how", "least", "most"), [("slabs", 0, 300), ("at once", 800, 1 << 20)])
def test_memory_is_a_part(how: str, least: int, most: int) -> None:
    """27 windows of 64 channels and 65536 voxels are 0.9 GB in float64; the slabs hold 64 MB of them."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, how], check=True, capture_output=True, text=True)
    assert least <= int(done.stdout) <= most, f"{done.stdout} MB"
