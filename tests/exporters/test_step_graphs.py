"""The files of a decode step: the ordinary typed graph and the weights are the same with and without plugin graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from exporters.typed_graphs import Variant, write_typed_graphs
from exporters.weights import WeightPool
from specs.bundle import TypedGraph
from specs.targets import load_target
from tests.exporters.passes.step_layer import make, run_fused
from tests.passes_support import differ, run

_TARGETS = ("h200@trt8.6", "rtx-4090", "cpu")


def write(folder: Path, largest: Mapping[str, int] | None) -> tuple[TypedGraph, ...]:
    """The layer, its weights in a pool, typed for three targets in fp32 and fp16."""
    folder.mkdir()
    model, _ = make()
    pool = WeightPool(folder)
    pool.store(model)
    ir.save(model, folder / "decode.onnx")
    return write_typed_graphs(
        folder / "decode.onnx",
        [Variant(target=load_target(name), precision=one) for one in ("fp32", "fp16") for name in _TARGETS],  # type: ignore[arg-type]
        pool,
        calibrate=lambda tensors: {},
        decided={},
        largest=largest,
        progress=lambda text, fraction: None,
    )


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_everything_else_stays_byte_for_byte(tmp_path: Path) -> None:
    with_plugins = write(tmp_path / "with", {"B": 16})
    without = write(tmp_path / "without", None)
    both, files = read(tmp_path / "with"), read(tmp_path / "without")
    added = {f"decode.h200@trt8.6-{precision}.plugin.onnx" for precision in ("fp32", "fp16")}
    assert set(both) - set(files) == added
    assert {name: both[name] for name in files} == files
    assert [typed.plugin_file for typed in with_plugins] == [
        "with/decode.h200@trt8.6-fp32.plugin.onnx", None, None, "with/decode.h200@trt8.6-fp16.plugin.onnx", None, None,
    ]  # fmt: skip
    assert not any(typed.plugin_file or typed.plugin_keep_fp32 for typed in without)
    assert [typed.keep_fp32 for typed in with_plugins] == [typed.keep_fp32 for typed in without]


def test_a_plugin_graph_names_its_own_nodes_that_stay_float32(tmp_path: Path) -> None:
    """A compiler without strong typing is told them: angles, and no norm, for that is in a plugin."""
    typed = write(tmp_path / "b", {"B": 16})
    half = next(one for one in typed if one.plugin_file and one.precision == "fp16")
    assert half.plugin_file is not None
    nodes = {node.name for node in onnx.load(tmp_path / half.plugin_file, load_external_data=False).graph.node}
    names = [entry.partition(":")[0] for entry in half.plugin_keep_fp32]
    assert names and set(names) <= nodes
    kept = {entry.partition(": ")[2] for entry in half.plugin_keep_fp32}
    assert (
        kept == {"angle: the error of a sine's argument is absolute"} < {e.partition(": ")[2] for e in half.keep_fp32}
    )


@pytest.mark.parametrize("largest", [{"B": 17}, {"S": 1}, {}])
def test_a_large_or_unknown_batch_has_no_plugin_graph(largest: dict[str, int], tmp_path: Path) -> None:
    assert not any(typed.plugin_file for typed in write(tmp_path / "b", largest))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 3e-6), ("fp16", 6e-3)])
def test_the_file_reads_the_weights_of_the_pool(precision: str, limit: float, tmp_path: Path) -> None:
    write(tmp_path / "b", {"B": 16})
    model, feed = make()
    path = tmp_path / "b" / f"decode.h200@trt8.6-{precision}.plugin.onnx"
    assert path.stat().st_size < 20_000
    onnx.checker.check_model(str(path))
    assert differ(run(model, feed), run_fused(ir.from_proto(onnx.load(path)), feed)) < limit
