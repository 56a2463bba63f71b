"""The LSTM op: torch's own numbers, any length, ONNX's operator, every precision; and Elu spelled as Selu beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from exporters.checkpoints.encodec import reorder_gates
from exporters.lower import lower
from exporters.passes import run_pipeline
from exporters.trace import trace
from specs import ops
from specs.families.base import make_float
from specs.handlers import GraphModule
from specs.models.audio.seanet import LstmLayer
from specs.schema import Dim
from tests.exporters.passes.test_rtx import COMPILE
from tests.passes_support import parse

DIMS = {"batch": Dim(min=1, opt=2, max=4), "time": Dim(min=1, opt=8, max=64)}


def draw(layers: int, width: int, *, dtype: torch.dtype = torch.float32) -> tuple[nn.LSTM, list[LstmLayer]]:
    """torch's module and ours with the same parameters."""
    torch.manual_seed(0)
    theirs = nn.LSTM(width, width, layers, dtype=dtype)
    ours = []
    for index in range(layers):
        layer = LstmLayer(width)
        for name, sources in (
            ("input_weight", ("weight_ih",)),
            ("state_weight", ("weight_hh",)),
            ("bias", ("bias_ih", "bias_hh")),
        ):
            parts = [getattr(theirs, f"{source}_l{index}").detach() for source in sources]
            setattr(layer, name, nn.Parameter(reorder_gates(*parts), requires_grad=False))
        ours.append(layer)
    return theirs, ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs_lstm(dtype: torch.dtype) -> None:
    theirs, (first, second) = draw(2, 9, dtype=dtype)
    x_TBC = torch.randn(13, 3, 9, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(second(first(x_TBC)), theirs(x_TBC)[0])
        with ops.plain_torch():
            assert torch.equal(second(first(x_TBC)), theirs(x_TBC)[0])


class Recurrent(nn.Module):
    """[B, C, T] -> elu, convolution, two LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv1d(9, 9, 3, padding=1)
        self.layers = nn.ModuleList(draw(2, 9)[1])

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_TBC = self.conv(nn.functional.elu(x_BCT)).permute(2, 0, 1)
        for layer in self.layers:
            x_TBC = layer(x_TBC)
        return x_TBC.permute(1, 2, 0)


@pytest.fixture(scope="module")
def lowered() -> tuple[Recurrent, ir.Model]:
    module = Recurrent().eval()
    graph = GraphModule(
        name="g",
        component="g",
        file_stem="model",
        inputs=(make_float("x", "batch", 9, "time"),),
        outputs=(make_float("y", "batch", 9, "time"),),
        module=module,
    )
    example = {"x": np.zeros((3, 9, 7), np.float32)}
    return module, lower(trace(graph, DIMS, example), graph)


def test_the_graph_holds_onnxs_own_operator(lowered: tuple[Recurrent, ir.Model]) -> None:
    assert [node.op_type for node in lowered[1].graph].count("LSTM") == 2
    assert not lowered[1].functions
    assert "Elu" in [node.op_type for node in lowered[1].graph]


@pytest.mark.parametrize("time", [1, 5, 40])
@pytest.mark.parametrize(
    ("lowering", "precision", "limit"),
    [
        ("onnxruntime", "fp32", 2e-6),
        ("tensorrt-8", "fp32", 2e-6),
        ("tensorrt-10", "fp32", 2e-6),
        ("tensorrt-11", "fp32", 2e-6),
        ("onnxruntime", "fp16", 2e-3),
        ("tensorrt-11", "fp16", 2e-3),
    ],
)
def test_any_length_in_every_lowering(
    lowered: tuple[Recurrent, ir.Model], tmp_path: Path, lowering: str, precision: str, limit: float, time: int
) -> None:
    module, model = lowered
    result = run_pipeline(model, lowering=lowering, precision=precision)
    ir.save(result.model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(2, 9, time, generator=torch.Generator().manual_seed(time))
    with torch.no_grad():
        wanted = module(x).numpy()
    (found,) = session.run(None, {"x": x.numpy()})
    assert np.abs(found - wanted).max() < limit * np.sqrt(np.square(wanted).mean())


def test_a_swapped_gate_is_noticed() -> None:
    theirs, (layer,) = draw(1, 9)
    gates = layer.input_weight.chunk(4)
    layer.input_weight = nn.Parameter(torch.cat([gates[index] for index in (0, 2, 1, 3)]), requires_grad=False)
    x_TBC = torch.randn(13, 3, 9)
    with torch.no_grad():
        assert (layer(x_TBC) - theirs(x_TBC)[0]).abs().max() > 1e-2


ELUS = """<ir_version: 10, opset_import: ["": 18]>
g (float[B,4,T] x) => (float[B,4,T] y, float[B,4,T] z, float[B,4,T] w) {
    y = Elu (x) z = Elu <alpha = 0.3> (x) w = Celu <alpha = 0.3> (x)
}
"""


def test_elu_becomes_selu_for_tensorrt_11_alone(tmp_path: Path) -> None:
    """The same numbers; a Celu, whose exponent is divided by alpha too, is another function and stays."""
    x = np.linspace(-6, 6, 48, dtype=np.float32).reshape(2, 4, 6)
    outputs = {}
    for lowering in ("tensorrt-11", "tensorrt-10", "onnxruntime"):
        result = run_pipeline(parse(ELUS, {}), lowering=lowering, precision="fp32")
        kinds = [node.op_type for node in result.model.graph]
        assert ("Elu" in kinds) == (lowering != "tensorrt-11")
        assert (kinds.count("Selu") == 2) == (lowering == "tensorrt-11")
        assert any("SpellElu: 2 nodes" in line for line in result.log) == (lowering == "tensorrt-11")
        ir.save(result.model, tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        outputs[lowering] = session.run(None, {"x": x})
    for one, other in zip(outputs["tensorrt-11"], outputs["onnxruntime"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_rtx_compiler_takes_it(lowered: tuple[Recurrent, ir.Model], tmp_path: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = run_pipeline(lowered[1], lowering="tensorrt-11", precision=precision)
    path = tmp_path / "model.onnx"
    ir.save(result.model, path)
    command = [sys.executable, "-c", COMPILE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
