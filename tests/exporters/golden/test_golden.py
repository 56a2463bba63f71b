"""Golden data: what torch answers, and the refusal of a reference that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporters.golden.data import compute_outputs, write_golden
from exporters.trace import choose_sizes, make_dynamic_shapes
from specs.errors import ExportError
from specs.handlers import GraphModule
from specs.schema import Dim, TensorSpec


def make_graph(module: nn.Module, outputs: int = 1) -> GraphModule:
    x = TensorSpec(name="x", dtype="float32", shape=("batch", 64))
    listed = tuple(TensorSpec(name=f"y{index}", dtype="float32", shape=("batch", 64)) for index in range(outputs))
    return GraphModule(name="g", component="g", file_stem="model", module=module.eval(), inputs=(x,), outputs=listed)


class Log(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.log()


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_a_reference_that_is_not_finite_is_refused(value: float) -> None:
    graph = make_graph(Log(), outputs=2)
    assert set(compute_outputs(graph, {"x": np.ones((2, 64), np.float32)})) == {"y0", "y1"}
    with pytest.raises(ExportError, match="the torch model itself answers NaN or infinity in 'y1'"):
        compute_outputs(graph, {"x": np.full((2, 64), value, np.float32)})


def test_what_is_written_is_what_was_computed(tmp_path: Path) -> None:
    x, y = (np.random.default_rng(seed).standard_normal((2, 3), dtype=np.float32) for seed in range(2))
    write_golden(tmp_path / "g.npz", {"a": x}, {"a": y})
    with np.load(tmp_path / "g.npz") as arrays:
        assert set(arrays.files) == {"input:a", "output:a"}
        assert np.array_equal(arrays["input:a"], x) and np.array_equal(arrays["output:a"], y)


def test_sizes_differ_wherever_their_ranges_allow() -> None:
    """So that a swapped axis cannot hide; 0 and 1 would be specialised on."""
    dims = {name: Dim(min=1, opt=4, max=64) for name in "abc"} | {"d": Dim(min=13, opt=13, max=13)}
    sizes = choose_sizes(dims, near=3)
    assert sizes == {"a": 3, "b": 8, "c": 13, "d": 13}
    narrow = {"a": Dim(min=1, opt=1, max=3), "b": Dim(min=8, opt=8, max=8), "c": Dim(min=2, opt=2, max=8)}
    found = choose_sizes(narrow, near=3)
    assert all(dim.min <= found[name] <= dim.max for name, dim in narrow.items())


def test_only_dims_with_a_range_are_dynamic_and_keep_their_ends() -> None:
    graph = make_graph(nn.Linear(64, 64))
    ((axes,),) = (make_dynamic_shapes(graph, {"batch": Dim(min=2, opt=3, max=5)}),)
    assert set(axes) == {0}
    assert (axes[0].__name__, axes[0].min, axes[0].max) == ("batch", 2, 5)
    assert make_dynamic_shapes(graph, {"batch": Dim(min=4, opt=4, max=4)}) == ({},)
