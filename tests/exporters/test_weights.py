"""Weight pools: each distinct tensor once, readable by onnx and ONNX Runtime."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from exporters.weights import INLINE_BYTES, WeightPool


def _make_model(weight: np.ndarray, extra: np.ndarray | None = None) -> ir.Model:
    """y = x @ weight (+ extra)."""
    rows, columns = weight.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if extra is None else "xw"])]
    initializers = [numpy_helper.from_array(weight, "w")]
    if extra is not None:
        nodes.append(helper.make_node("Add", ["xw", "b"], ["y"]))
        initializers.append(numpy_helper.from_array(extra, "b"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [None, rows])],
        [helper.make_tensor_value_info("y", 1, [None, columns])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(proto)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)


def test_two_graphs_share_bytes(tmp_path: Path, weight: np.ndarray) -> None:
    pool = WeightPool(tmp_path)
    for name, model in (("a", _make_model(weight)), ("b", _make_model(weight.copy(), np.ones(64, np.float32)))):
        pool.store(model)
        ir.save(model, tmp_path / f"{name}.onnx")
    assert (tmp_path / "weights.float.data").stat().st_size == weight.nbytes, "the bias is small enough to stay inline"
    x = np.random.default_rng(1).standard_normal((3, 64), dtype=np.float32)
    for name, bias in (("a", 0), ("b", 1)):
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"))
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight + bias, atol=1e-4)


def test_dtypes_have_pools_of_their_own(tmp_path: Path, weight: np.ndarray) -> None:
    pool = WeightPool(tmp_path)
    pool.store(_make_model(weight))
    pool.store(_make_model(weight.astype(np.float16)))
    assert {p.name for p in tmp_path.iterdir()} == {"weights.float.data", "weights.float16.data"}


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pool = WeightPool(tmp_path)
    for rows in (16, 33, 600):  # unaligned lengths, and one that starts on a page
        pool.store(_make_model(rng.standard_normal((rows, 601), dtype=np.float32)))
    (entry,) = pool.list_entries().values()
    data = (tmp_path / "weights.float.data").read_bytes()
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_large_tensors_start_on_a_page(tmp_path: Path, weight: np.ndarray) -> None:
    pool = WeightPool(tmp_path)
    pool.store(_make_model(weight))
    large = _make_model(np.ones((512, 1024), np.float32))
    pool.store(large)
    tensor = large.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None
    assert tensor.offset % 4096 == 0 and tensor.offset > 0


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    """Equal bytes of two types, odd lengths, a page, memory in another order, half bytes, a subgraph's, strings."""
    rng = np.random.default_rng(0)
    arrays = {
        "zeros": np.zeros(600, np.float32),
        "counts": rng.integers(0, 9, 201),
        "no counts": np.zeros(300, np.int64),
        "odd": rng.standard_normal(601, dtype=np.float32),
        "next": rng.standard_normal((5, 77), dtype=np.float32),
        "page": rng.standard_normal((601, 601), dtype=np.float32),
        "last": rng.standard_normal((31, 17), dtype=np.float32),
        "turned": rng.standard_normal((32, 48), dtype=np.float32).T,
        "same shape, other": np.arange(300, dtype=np.int64),
    }
    four_bits = rng.integers(-8, 8, (64, 63)).astype(ir.DataType.INT4.numpy())
    tensors: dict[str, ir.TensorProtocol] = {name: ir.tensor(array) for name, array in arrays.items()}
    tensors["four bits"] = ir.tensor(four_bits, dtype=ir.DataType.INT4)
    words = ir.StringTensor([b"word" * 9] * 99, shape=ir.Shape([99]), name="words")
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    inner = ir.Graph([], [], nodes=[], name="inner")
    inside = rng.standard_normal(999, dtype=np.float32)
    for owner, name, tensor in (
        *((graph, name, tensor) for name, tensor in tensors.items()),
        (graph, "words", words),
        (inner, "inside", ir.tensor(inside)),
    ):
        owner.register_initializer(ir.Value(name=name, const_value=tensor))
    condition = ir.Value(name="c")
    graph.inputs.append(condition)
    graph.append(ir.node("If", [condition], attributes={"then_branch": inner}))
    WeightPool(tmp_path).store(ir.Model(graph, ir_version=10))

    assert graph.initializers["words"].const_value is words
    inside_value = inner.initializers["inside"].const_value
    assert isinstance(inside_value, ir.ExternalTensor) and np.array_equal(inside_value.numpy(), inside)
    assert np.array_equal(graph.initializers["four bits"].const_value.numpy(), four_bits)  # type: ignore[union-attr]
    for name, array in arrays.items():
        stored = graph.initializers[name].const_value
        assert isinstance(stored, ir.ExternalTensor) and stored.offset is not None
        assert stored.offset % (4096 if array.nbytes >= 1 << 20 else 64) == 0, name
        assert stored.numpy().dtype == array.dtype and np.array_equal(stored.numpy(), array), name


def test_a_tensor_of_somebody_else_s_file_is_brought_along(tmp_path: Path, weight: np.ndarray) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    (theirs / "w.bin").write_bytes(weight.tobytes())
    model = _make_model(weight)
    model.graph.initializers["w"].const_value = ir.ExternalTensor(
        "w.bin", 0, weight.nbytes, ir.DataType.FLOAT, shape=ir.Shape(weight.shape), name="w", base_dir=theirs
    )
    WeightPool(ours).store(model)
    (theirs / "w.bin").unlink()
    stored = model.graph.initializers["w"].const_value
    assert stored is not None and np.array_equal(stored.numpy(), weight)


def test_small_tensors_stay_inline(tmp_path: Path) -> None:
    model = _make_model(np.ones((4, INLINE_BYTES // 16 - 1), np.float32))
    WeightPool(tmp_path).store(model)
    assert list(tmp_path.iterdir()) == []


def test_changed_content_is_another_tensor(tmp_path: Path, weight: np.ndarray) -> None:
    pool = WeightPool(tmp_path)
    pool.store(_make_model(weight))
    changed = weight.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], 1)
    pool.store(_make_model(changed))
    assert (tmp_path / "weights.float.data").stat().st_size == 2 * weight.nbytes
