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
