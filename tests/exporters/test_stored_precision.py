"""Narrow weights keep their type from the source to every graph, are stored once, and are computed with in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporters import stored_parameters
from exporters.golden.data import compute_outputs
from exporters.passes import run_pipeline
from exporters.passes.fold_transposed_weights import FoldTransposedWeights
from exporters.passes.shared.derived import find_stored, transpose_lazily, widen_lazily
from exporters.passes.store_narrow_weights import StoreNarrowWeights
from exporters.passes.widen_weights import WidenWeights
from exporters.stored_parameters import streaming_parameters, widening_forward
from exporters.weights import WeightPool
from metagen_deploy import pipeline
from specs.errors import GraphError, WeightsError
from specs.handlers import get_handler
from specs.load import load_spec
from specs.parameters.fill import fill_parameters
from specs.parameters.mapped import lies_in_file
from specs.parameters.random import RandomParameters
from specs.parameters.safetensors import SafetensorsFile
from specs.progress import ignore_progress
from specs.schema import Spec, WeightsSpec
from specs.system.pages import drop_pages, list_file_mappings
from tests.passes_support import count_ops, differ, parse, random, run

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def load_narrow(dtype: str) -> Spec:
    spec = load_spec("text_llm_8b:tiny")
    return spec.model_copy(update={"weights": WeightsSpec(dtype=dtype), "targets": ("cpu",)})  # type: ignore[arg-type]


class Everything(nn.Module):
    """Parameters in every place where the rule must know what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear, self.norm = nn.Embedding(32, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.table, self.scale = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.linear(self.embedding(ids))) + self.table[: ids.shape[1]]
        x = x.to(self.table.dtype)  # asks for the type: that of the computation
        x = torch.cat([x, self.table[None, :2].expand(x.shape[0], -1, -1)], dim=1)
        return (x * self.scale.exp()) @ self.table.T


@pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
@pytest.mark.parametrize("how", [streaming_parameters, widening_forward])
def test_narrow_parameters_compute_in_float32(how: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    narrow = Everything().to(dtype).eval()
    wide = Everything().eval()
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    ids = torch.arange(6).view(2, 3)
    with torch.no_grad():
        with how(narrow):
            got = narrow(ids)
        assert got.dtype == torch.float32 and torch.equal(got, wide(ids))
        assert {p.dtype for p in narrow.parameters()} == {dtype}


def test_a_large_linear_is_widened_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = nn.Linear(16, 50).half()
    x = torch.randn(3, 16)
    wanted = nn.functional.linear(x, linear.weight.float(), linear.bias.float())
    monkeypatch.setattr(stored_parameters, "_WIDENED_AT_ONCE_BYTES", 7 * 4 * 16)
    with torch.no_grad(), streaming_parameters(linear):
        torch.testing.assert_close(linear(x), wanted, rtol=1e-6, atol=1e-6)


def test_pages_are_dropped_while_a_module_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_narrow("fp16")
    module = get_handler(spec).build(spec, scratch=tmp_path)[0]
    dropped: list[int] = []
    monkeypatch.setattr(stored_parameters, "CHUNK_BYTES", 40_000)
    monkeypatch.setattr(stored_parameters, "drop_tensor", lambda value: dropped.append(value.nbytes))
    inputs = get_handler(spec).make_inputs(spec, module, sizes={"batch": 2, "tokens": 5, "cache": 9}, seed=0)
    compute_outputs(module, inputs)
    layers = [p for name, p in module.module.named_parameters() if p.dim() > 1 and "embedding" not in name]
    assert sum(dropped) >= sum(p.nbytes for p in layers), "gate and up, whose modules are not called, are among them"


@pytest.mark.parametrize("dtype", HALF)
def test_random_weights_are_drawn_alike_in_every_type(dtype: str) -> None:
    like = {"c.norm.weight": torch.empty(7), "c.linear.weight": torch.empty(33, 17)}
    wide, narrow = (RandomParameters(like, seed=3, dtype=d) for d in (torch.float32, HALF[dtype]))
    for name, value in like.items():
        a, b = torch.empty(value.shape), torch.empty(value.shape, dtype=HALF[dtype])
        wide.fill(name, a)
        narrow.fill(name, b)
        assert torch.equal(a.to(HALF[dtype]), b)


def test_pieces_of_random_weights_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    like = {"c.linear.weight": torch.empty(100, 33)}

    def draw() -> torch.Tensor:
        out = torch.empty(100, 33)
        RandomParameters(like, seed=1).fill("c.linear.weight", out)
        return out

    whole = draw()
    monkeypatch.setattr("specs.parameters.random._DRAWN_AT_ONCE", 160)
    assert torch.equal(draw()[:-1], whole[:-1]), "the last 16 of an odd length are drawn in another way"


def test_a_file_s_tensors_are_used_where_they_lie(tmp_path: Path) -> None:
    model = nn.ModuleDict({"linear": nn.Linear(600, 500, device="meta")})
    weights = {"c.linear.weight": torch.randn(500, 600).half(), "c.linear.bias": torch.randn(500)}
    save_file(weights, tmp_path / "w.safetensors")
    fill_parameters({"c": model}, SafetensorsFile(tmp_path / "w.safetensors"), scratch=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "w.safetensors"]
    parameter = model["linear"].weight
    assert lies_in_file(parameter) and parameter.dtype == torch.float16
    drop_pages(parameter.data_ptr(), parameter.nbytes)
    assert torch.equal(parameter, weights["c.linear.weight"]), "what was dropped is read again"
    assert any(start <= parameter.data_ptr() < end for start, end in list_file_mappings(tmp_path))


def test_private_memory_is_never_dropped() -> None:
    assert not lies_in_file(torch.ones(1 << 20))


def test_shapes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    save_file({"c.0.weight": torch.full((3, 3), torch.nan), "c.1.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    model = nn.Sequential(nn.Linear(3, 3, bias=False, device="meta"), nn.Linear(9, 9, bias=False, device="meta"))
    with pytest.raises(WeightsError, match=r"'c\.1\.weight' has the wrong shape"):
        fill_parameters({"c": model}, SafetensorsFile(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("dtype", HALF)
def test_every_graph_shares_the_stored_bytes(tmp_path: Path, dtype: str) -> None:
    pipeline.export(
        str(_write_spec(tmp_path, dtype)),
        output=tmp_path / "x.bundle",
        targets=("cpu",),
        precisions=("fp32", "fp16"),
        progress=ignore_progress,
    )
    folder = tmp_path / "x.bundle" / "decoder"
    spec = load_narrow(dtype)
    parameters = sum(p.nbytes for p in get_handler(spec).build(spec)[0].module.parameters())
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.data")}
    stored = {"fp16": "weights.float16.data", "bf16": "weights.bfloat16.data"}[dtype]
    assert set(sizes) == {stored}, "nothing is stored in float32, nor in a second narrow type"
    assert all(size < parameters * 1.02 for size in sizes.values()), (sizes, parameters)
    for name in ("prefill", "decode"):
        portable = _list_places(folder / f"{name}.onnx")
        assert _list_places(folder / f"{name}.cpu-fp32.onnx") == portable
        assert _list_places(folder / f"{name}.cpu-fp16.onnx") == portable
    assert _list_places(folder / "prefill.onnx") == _list_places(folder / "decode.onnx")


def _write_spec(folder: Path, dtype: str) -> Path:
    from specs.load import dump_spec

    path = folder / "narrow.yaml"
    path.write_text(dump_spec(load_narrow(dtype)), encoding="utf-8")
    return path


def _list_places(path: Path) -> set[tuple[str, str]]:
    model = onnx.load(str(path), load_external_data=False)
    entries = [{e.key: e.value for e in tensor.external_data} for tensor in model.graph.initializer]
    return {(entry["location"], entry.get("offset", "0")) for entry in entries if entry}


NARROW = """<ir_version: 10, opset_import: ["": 18]> g (int64[2] ids, float[2,8] x) => (float y, float z) {
    rows = Gather (E, ids) wide = Cast <to = 1> (rows)
    table = Cast <to = 1> (E) turned = Transpose <perm = [1, 0]> (table) y = MatMul (x, turned)
    w = Cast <to = 1> (W) wt = Transpose <perm = [1, 0]> (w) z = MatMul (wide, wt)
}"""
FEED = {"ids": np.array([3, 1]), "x": random(2, 8, seed=2)}


def make_narrow(dtype: Any = np.float16) -> ir.Model:
    model = parse(NARROW)
    for name, shape, seed in (("E", (16, 8), 0), ("W", (4, 8), 1)):
        tensor = ir.tensor(random(*shape, seed=seed).astype(dtype), name=name)
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), tensor.shape
        model.graph.register_initializer(value)
    return model


def test_widening_is_exact_and_undone() -> None:
    model = make_narrow()
    before = run(model, FEED)
    assert WidenWeights()(model).modified
    assert "Cast" not in count_ops(model)
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT}
    assert differ(before, run(model, FEED)) == 0
    assert StoreNarrowWeights()(model).modified
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert count_ops(model)["Cast"] == 3, "one behind the rows looked up, one for each weight"
    assert differ(before, run(model, FEED)) == 0


def test_a_cast_of_what_is_no_weight_stays() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float16[2] x) => (float y) { y = Cast <to = 1> (x) }"""
    model = parse(text)
    assert not WidenWeights()(model).modified


def test_a_tied_weight_is_not_stored_twice() -> None:
    model = make_narrow()
    before = run(model, FEED)
    WidenWeights()(model)
    large = "exporters.passes.fold_transposed_weights._SMALL_BYTES"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, 0)
        FoldTransposedWeights(keep_tied=True)(model)
    assert count_ops(model)["Transpose"] == 1, "E is looked up too; W is not"
    StoreNarrowWeights()(model)
    assert len(model.graph.initializers) == 2
    assert differ(before, run(model, FEED)) == 0


def test_a_float16_graph_takes_the_stored_bytes() -> None:
    result = run_pipeline(make_narrow(), lowering="onnxruntime", precision="fp16")
    for value in result.model.graph.initializers.values():
        assert value.dtype == ir.DataType.FLOAT16
        source = value.const_value
        while isinstance(source, ir.LazyTensor):
            source = source.meta["metagen.source"]
        assert source is not None and source.dtype == ir.DataType.FLOAT16, "never by way of float32"


def test_bfloat16_beyond_float16_is_not_cut() -> None:
    model = make_narrow(ml_dtypes.bfloat16)
    weight = model.graph.initializers["W"].const_value
    assert weight is not None
    large = weight.numpy().copy()
    large[0, 0] = 1e5
    model.graph.initializers["W"].const_value = ir.tensor(large, name="W")
    before = run(run_pipeline(model, lowering="onnxruntime", precision="fp32").model, FEED)
    result = run_pipeline(model, lowering="tensorrt-10", precision="fp16")
    assert any("holds 9.98e+04, float16 ends at 65504" in reason for reason in result.keep_fp32)
    assert differ(before, run(result.model, FEED)) < 1e-2


def test_a_bfloat16_bias_beyond_float16_is_refused() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[2,8] x) => (float y) {
        p = Mul (x, x) b = Cast <to = 1> (B) q = Where (c, x, b) y = Neg (q)
    }"""
    model = parse(text, {"c": np.ones(8, bool)})
    value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == "B")
    tensor = ir.tensor(np.full(8, 1e5).astype(ml_dtypes.bfloat16), name="B")
    value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), tensor.shape
    model.graph.register_initializer(value)
    with pytest.raises(GraphError) as caught:
        run_pipeline(model, lowering="tensorrt-10", precision="fp16")
    assert "8 values of its weight 'B/float', stored in bfloat16, are beyond float16's 65504" in str(caught.value)
    assert "fix:     ask for bf16 or fp32" in str(caught.value)


def test_a_transposed_widened_weight_remembers_its_transpose() -> None:
    stored = ir.tensor(random(3, 5).astype(np.float16))
    turned = transpose_lazily(widen_lazily(stored), (1, 0))
    source = find_stored(turned)
    assert source is not None and source.dtype == ir.DataType.FLOAT16
    assert np.array_equal(source.numpy(), stored.numpy().T)
    assert np.array_equal(turned.numpy(), stored.numpy().T.astype(np.float32))


def test_the_same_parameter_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_ir.tensor_adapters import TorchTensor

    parameter = torch.randn(64, 48)

    def make() -> ir.Model:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="g")
        for name, tensor in (("w", TorchTensor(parameter)), ("t", transpose_lazily(TorchTensor(parameter), (1, 0)))):
            graph.register_initializer(ir.Value(name=name, const_value=tensor))
        return ir.Model(graph, ir_version=10)

    pool, first, second = WeightPool(tmp_path), make(), make()
    pool.store(first)
    monkeypatch.setattr("exporters.weights._view_bytes", lambda tensor: pytest.fail("it is in the pool"))
    pool.store(second)
    for name in ("w", "t"):
        a, b = (model.graph.initializers[name].const_value for model in (first, second))
        assert isinstance(a, ir.ExternalTensor) and isinstance(b, ir.ExternalTensor) and a.offset == b.offset
    assert np.array_equal(first.graph.initializers["t"].const_value.numpy(), parameter.numpy().T)  # type: ignore[union-attr]
