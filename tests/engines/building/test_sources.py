"""Which typed graph a build compiles, and the nodes of that very graph that stay in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from engines import plugins
from engines.backends import load_backend
from engines.backends.base import Availability
from engines.building.sources import choose_source
from specs.bundle import TypedGraph

TYPED = TypedGraph(
    target="h200@trt8.6",
    precision="fp16",
    lowering="tensorrt-8",
    opset=17,
    file="part/model.onnx",
    keep_fp32=("square: range", "cos: angle"),
    plugin_file="part/model.plugin.onnx",
    plugin_keep_fp32=("cos: angle", "scaled: position"),
)
HERE = Availability(backend="tensorrt", version="8.6.0", can_compile=True, can_run=True, device="H200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    node = onnx.helper.make_node("Op", ["x"], ["y"], domain=plugins.DOMAIN)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
    onnx.save(model, tmp_path / "part/model.plugin.onnx")
    return tmp_path


def serve(monkeypatch: pytest.MonkeyPatch, *ops: str) -> None:
    library = plugins.PluginLibrary(path=Path("libp.so"), sha256="0" * 64, tensorrt=8, ops=ops)
    monkeypatch.setattr(plugins, "find_libraries", lambda bundle: (library,) if ops else ())


@pytest.mark.parametrize(("typed", "ops", "file", "kept"), [
    (TYPED, (), "part/model.onnx", ("square", "cos")),
    (TYPED, ("Op",), "part/model.plugin.onnx", ("cos", "scaled")),
    (replace(TYPED, plugin_keep_fp32=()), ("Op",), "part/model.plugin.onnx", ("square", "cos")),  # an older bundle
    (replace(TYPED, plugin_file=None, plugin_keep_fp32=()), ("Op",), "part/model.onnx", ("square", "cos")),
])  # fmt: skip
def test_the_nodes_kept_are_those_of_the_graph_that_is_built(
    typed: TypedGraph, ops: tuple[str, ...], file: str, kept: tuple[str, ...], folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    serve(monkeypatch, *ops)
    source = choose_source(folder, typed, load_backend("tensorrt"), HERE)
    assert (source.file, source.keep_fp32) == (file, kept)
