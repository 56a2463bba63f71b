"""MetagenGridSample3D on every path that needs no GPU, for every mode, padding and alignment, against torch's numbers.

The paths: the body (what any runtime runs, and TensorRT without the plugin), ONNX Runtime's own 5-D GridSample, and the
typed graphs of every target class, read back by ONNX Runtime.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from exporters.ops import attach_bodies
from exporters.ops.base import DOMAIN, DOMAIN_VERSION
from exporters.passes import run_pipeline, takes_plugins
from specs import ops
from tests.passes_support import parse

_CASES = list(itertools.product(("bilinear", "nearest"), ("zeros", "border", "reflection"), (False, True)))
_VOLUME, _GRID = (2, 3, 4, 5, 7), (2, 6, 3, 5, 3)  # no two sizes of one tensor equal: a swapped axis shows
Case = tuple[str, str, bool]


def _make_tensors(reach: float = 1.7) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume, and a grid of which more than half lies outside, some of it by many periods of a reflection."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(_VOLUME, generator=generator)
    grid = torch.randn(_GRID, generator=generator) * reach
    grid[0, 0] *= 9
    grid[0, 1, 0] = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [0, 0, 0], [-1, 0, 1], [1.5, -1.5, 0.5]])
    return volume, grid


def _make_model(case: Case, *, batch: str | int = "batch", volume: tuple[int, ...] = _VOLUME) -> ir.Model:
    """One node, its body attached, with a dynamic batch."""
    mode, padding, align = case
    inputs = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([batch, *shape[1:]]))
        for name, shape in (("x", volume), ("grid", _GRID))
    ]
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": int(align)}
    node = ir.node("MetagenGridSample3D", inputs, attributes=attributes, domain=DOMAIN, name="sample")
    out = node.outputs[0]
    out.name, out.type = "out", ir.TensorType(ir.DataType.FLOAT)
    out.shape = ir.Shape([batch, volume[1], *_GRID[1:4]])
    graph = ir.Graph(inputs, [out], nodes=[node], name="g", opset_imports={"": 18, DOMAIN: DOMAIN_VERSION})
    model = ir.Model(graph, ir_version=10)
    attach_bodies(model)
    return model


def _run(model: ir.Model, volume: torch.Tensor, grid: torch.Tensor) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": volume.numpy(), "grid": grid.numpy()})
    return np.asarray(out)


def _sample(case: Case, volume: torch.Tensor, grid: torch.Tensor) -> np.ndarray:
    mode, padding, align = case
    return functional.grid_sample(volume, grid, mode=mode, padding_mode=padding, align_corners=align).numpy()


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference; values are around 1."""
    return float(np.abs(got - wanted).max())


@pytest.mark.parametrize("case", _CASES)
def test_the_wrapper_is_torchs_grid_sample(case: Case) -> None:
    volume, grid = _make_tensors()
    mode, padding, align = case
    got = ops.grid_sample_3d(volume, grid, mode=mode, padding_mode=padding, align_corners=align)  # type: ignore[arg-type]
    assert _error(got.numpy(), _sample(case, volume, grid)) == 0
    arguments = (volume, grid, mode, padding, align)
    torch.library.opcheck(torch.ops.metagen.grid_sample_3d, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("case", _CASES)
def test_body_equals_torch(case: Case) -> None:
    volume, grid = _make_tensors()
    assert _error(_run(_make_model(case), volume, grid), _sample(case, volume, grid)) < 5e-6


def _swap_axes(grid: torch.Tensor) -> torch.Tensor:
    return grid.flip(-1)


def _shift_by_half_a_voxel(grid: torch.Tensor) -> torch.Tensor:
    return grid + 1 / torch.tensor(_VOLUME[:1:-1])


_GRID_MUTANTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "x and z swapped": _swap_axes,
    "off by half a voxel": _shift_by_half_a_voxel,
}


@pytest.mark.parametrize("mutant", _GRID_MUTANTS)
@pytest.mark.parametrize("case", _CASES)
def test_the_comparison_kills_a_wrong_grid(case: Case, mutant: str) -> None:
    volume, grid = _make_tensors()
    assert _error(_run(_make_model(case), volume, _GRID_MUTANTS[mutant](grid)), _sample(case, volume, grid)) > 0.1


@pytest.mark.parametrize("case", _CASES)
def test_the_comparison_kills_wrong_attributes(case: Case) -> None:
    """Each of the twelve cases differs from each other one, so no attribute can be ignored."""
    volume, grid = _make_tensors()
    got = _run(_make_model(case), volume, grid)
    for other in _CASES:
        if other != case:
            assert _error(got, _sample(other, volume, grid)) > 0.1, other


def test_the_comparison_kills_a_reflection_off_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrored at a voxel's centre where it should be its face."""
    from exporters.ops import grid_sample_3d

    reflect = grid_sample_3d._reflect
    monkeypatch.setattr(grid_sample_3d, "_reflect", lambda body, p, span, low: reflect(body, p, span, low + 0.5))
    volume, grid = _make_tensors()
    for case in _CASES:
        if case[1] == "reflection":
            assert _error(_run(_make_model(case), volume, grid), _sample(case, volume, grid)) > 0.1, case


@pytest.mark.parametrize("case", _CASES)
def test_a_volume_of_one_voxel_along_an_axis(case: Case) -> None:
    """The span of an aligned reflection is 0 there."""
    shape = (2, 3, 1, 5, 1)
    volume, (_, grid) = torch.randn(shape, generator=torch.Generator().manual_seed(1)), _make_tensors()
    got = _run(_make_model(case, volume=shape), volume, grid)
    assert _error(got, _sample(case, volume, grid)) < 5e-6


@pytest.mark.parametrize("case", _CASES)
def test_positions_far_outside_do_not_overflow_an_index(case: Case) -> None:
    volume, grid = _make_tensors()
    far = grid.sign() * 1e12
    got = _run(_make_model(case), volume, far)
    assert np.isfinite(got).all()
    if case[1] != "reflection":  # in a reflection, a float32 of this size no longer says where in its period it is
        assert _error(got, _sample(case, volume, far)) < 5e-6


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), ("batch", 2)])
def test_samples_do_not_read_each_other(batch: str | int, rows: int) -> None:
    volume, grid = _make_tensors()
    model = _make_model(("bilinear", "border", False), batch=batch)
    whole = _run(model, volume[:rows], grid[:rows])
    for row in range(rows):
        alone = _run(_make_model(("bilinear", "border", False)), volume[row : row + 1], grid[row : row + 1])
        assert _error(whole[row : row + 1], alone) == 0


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"])
@pytest.mark.parametrize("case", _CASES)
def test_every_target_class_answers_as_torch(case: Case, lowering: str) -> None:
    volume, grid = _make_tensors()
    result = run_pipeline(_make_model(case), lowering=lowering, precision="fp32")
    assert _error(_run(result.model, volume, grid), _sample(case, volume, grid)) < 5e-6
    native = [node.op_type for node in result.model.graph if node.op_type == "GridSample"]
    assert native == (["GridSample"] if lowering == "onnxruntime" else [])


def test_many_channels_keep_the_body_in_onnx_runtime() -> None:
    model = _make_model(("bilinear", "zeros", False), volume=(2, 9, 4, 5, 7))
    result = run_pipeline(model, lowering="onnxruntime", precision="fp32")
    assert not [node for node in result.model.graph if node.op_type == "GridSample"]
    assert result.log[0] == (
        "LowerGridSample: metagen::MetagenGridSample3D 'sample' keeps its body: "
        "of 9 channels, ONNX Runtime's kernel works one by one (it pays up to 8)"
    )


@pytest.mark.parametrize("lowering", ["onnxruntime", "tensorrt-8", "tensorrt-10", "tensorrt-11"])
@pytest.mark.parametrize("case", _CASES)
def test_half_precision_rounds_values_and_not_positions(case: Case, lowering: str) -> None:
    """At a width of 1000 a float16 position is off by up to a quarter of a voxel; values round by 1e-3."""
    shape = (1, 2, 2, 3, 1000)
    generator = torch.Generator().manual_seed(2)
    volume, grid = (
        torch.randn(shape, generator=generator),
        torch.rand((1, *_GRID[1:]), generator=generator) * 1.9 - 0.95,
    )
    result = run_pipeline(_make_model(case, volume=shape), lowering=lowering, precision="fp16")
    wanted = _sample(case, volume, grid)
    assert _error(_run(result.model, volume, grid), wanted) < 5e-3
    assert _error(_sample(case, volume, grid.half().float()), wanted) > 0.05, "the mutant: positions in float16"


@pytest.mark.parametrize(("lowering", "precision", "volume"), [
    ("tensorrt-8", "fp32", "FLOAT"),
    ("tensorrt-8", "fp16", "FLOAT16"),
    ("tensorrt-8", "int8", "FLOAT"),
    ("tensorrt-10", "fp16", "FLOAT16"),
    ("tensorrt-10", "bf16", "BFLOAT16"),
    ("tensorrt-11", "bf16", "BFLOAT16"),
    ("tensorrt-11", "int8", "FLOAT16"),
])  # fmt: skip
def test_a_plugins_node_is_kept_and_typed(lowering: str, precision: str, volume: str) -> None:
    model = _make_model(("nearest", "border", True))
    assert takes_plugins(model, lowering, precision)
    result = run_pipeline(model, lowering=lowering, precision=precision, ranges={}, plugins=True)
    (node,) = [n for n in result.model.graph if n.op_type == "MetagenGridSample3D"]
    assert (node.domain, node.overload) == ("metagen.plugin", "")
    assert [v.dtype.name for v in (*node.inputs, *node.outputs)] == [volume, "FLOAT", volume]  # type: ignore[union-attr]
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "mode": "nearest",
        "padding_mode": "border",
        "align_corners": 1,
        "plugin_version": "1",
        "plugin_namespace": "metagen.plugin",
    }
    assert not result.model.functions
    assert "KeepPlugins: 1 nodes MetagenGridSample3D are left to a plugin" in result.log
    assert [o.dtype for o in result.model.graph.outputs] == [ir.DataType.FLOAT]


def test_what_leads_up_to_a_plugins_grid_stays_float32() -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
        g (float[1,8,4,5,6] x, float[1,2,3,4,3] flow) => (float[1,8,2,3,4] y) {
            moved = Add (flow, still)
            bright = Add (x, x)
            y = metagen.MetagenGridSample3D
                <mode: string = "bilinear", padding_mode: string = "zeros", align_corners: int = 0> (bright, moved)
        }""", {"still": np.zeros((1, 2, 3, 4, 3), np.float32)})  # fmt: skip
    for plugins in (True, False):
        result = run_pipeline(model, lowering="tensorrt-10", precision="fp16", plugins=plugins)
        kinds = {node.outputs[0].name: node.outputs[0].dtype for node in result.model.graph if node.op_type == "Add"}
        assert (kinds["moved"], kinds["bright"]) == (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def test_plugins_are_for_tensorrt_and_for_graphs_that_have_such_nodes() -> None:
    model = _make_model(("nearest", "border", True))
    assert not takes_plugins(model, "onnxruntime", "fp32")
    model.graph[0].op_type = "MetagenAttention"
    assert not takes_plugins(model, "tensorrt-8", "fp32")
