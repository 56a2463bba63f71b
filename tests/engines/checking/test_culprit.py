"""Where a graph first leaves its reference: by name and not by mask, in bounded memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.checking import culprit
from engines.checking.compare import find_scale, measure_difference
from engines.checking.culprit import _find_jump, _measure_error, find_divergence

FEED = {"x": np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)}


def write(folder: Path, name: str, body: str, result: str = "float[2,3] y") -> Path:
    text = f'<ir_version: 10, opset_import: ["": 18]> g (float[2,3] x) => ({result}) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def find(folder: Path, before: str, after: str, limit: float = 0.1) -> tuple[str, str] | None:
    found = find_divergence(write(folder, "before", before), write(folder, "after", after), FEED, limit=limit)
    return None if found is None else (found.tensor, found.op_type)


@pytest.fixture(params=[1, 60, 1 << 20], ids=["one by one", "a few", "at once"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("_chunks")
def test_the_first_tensor_beyond_the_limit_is_named(tmp_path: Path) -> None:
    """`h` means another thing in each, and has another shape."""
    body = "h = Transpose <perm = [{}, {}]> (x) back = Transpose <perm = [{}, {}]> (h) z = Neg (back) w = {} (z)"
    body += " y = Exp (w)"
    before, after = body.format(0, 1, 0, 1, "Identity"), body.format(1, 0, 1, 0, "Abs")
    assert find(tmp_path, before, after) == ("w", "Abs")
    assert find(tmp_path, before, before) is None


@pytest.mark.usefixtures("_chunks")
def test_the_largest_jump_is_named_where_nothing_is_beyond(tmp_path: Path) -> None:
    body = "{} a = Add (x, x) b = Mul (a, f) y = Identity (b)"
    one, more = (body.format(f"f = Constant <value_float = {value}> ()") for value in (1.0, 1.01))
    assert find(tmp_path, one, more, limit=10.0) == ("f", "Constant")
    assert _find_jump({"a": 1e-6, "b": 2e-6, "c": 0.2, "d": 0.25}) == "c"
    assert _find_jump({"a": 0.0}) is None


MASKED = """seen = Less (x, zero) m = Where (seen, none, low) s = Add (x, m) p = Softmax (s) y = {} (p)"""


@pytest.mark.parametrize("low", ["-1.7e38", "-32752.0", "-1e38", "-3.4028234e38"])
def test_a_mask_in_other_words_is_no_difference(tmp_path: Path, low: str) -> None:
    head = "zero = Constant <value_float = 0.5> () none = Constant <value_float = 0.0> ()"
    head += " low = Constant <value_float = {}> ()"
    before, after = (head.format(value) + MASKED.format(op) for value, op in (("-3.4028234e38", "Neg"), (low, "Abs")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(tmp_path, before, after) == ("y", "Abs")


def test_what_a_mask_is() -> None:
    mask = np.array([-3.4e38, 1.0, 2.0])
    assert _measure_error(np.array([-np.inf, 1, 2]), mask) == 0.0
    assert _measure_error(np.array([-32752, 1, 2]), mask) == 0.0
    assert _measure_error(np.array([-32740.5, 1, 2]), np.array([-1e9, 1, 2])) == 0.0, "half precision, a score added"
    assert _measure_error(np.array([-32752, 1, 1]), mask) == pytest.approx((0.5 / 2.5) ** 0.5), (
        "it does not hide the rest"
    )
    assert _measure_error(np.array([3.4e38, 1, 2]), mask) > 1, "another sign"
    assert _measure_error(np.array([0.0, 1, 2]), mask) > 0.9, "dropped"
    assert _measure_error(mask, np.array([0.0, 1, 2])) > 1e30, "masked where nothing was"
    assert _measure_error(np.array([np.inf, 1, 2]), np.array([1e5, 1, 2])) == np.inf, "an activation that overflows"
    assert _measure_error(np.array([2e5, 1, 2]), np.array([1e5, 1, 2])) > 0.9, "large and wrong"
    assert _measure_error(np.ones(3), np.zeros(3)) == np.inf
    assert _measure_error(np.zeros(3), np.zeros(3)) == 0.0
    assert _measure_error(np.array([1, np.nan]), np.ones(2)) == np.inf
    assert _measure_error(np.array([np.nan]), np.array([-3.4e38])) == np.inf


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e-40, 1.0, 1e30, 1e37, 1e200, 1e300])
def test_no_number_is_too_large_to_be_compared(factor: float) -> None:
    value, reference = np.array([1.0, -2, 3, 0]) * factor, np.array([1.0, -2, 2, 0]) * factor
    found = measure_difference("x", value, reference)
    assert found.max_abs == pytest.approx(factor) and found.mean_abs == pytest.approx(factor / 4)
    assert found.reference_rms == pytest.approx(1.5 * factor) and found.cosine == pytest.approx(11 / 126**0.5)
    assert _measure_error(value, reference) == (0.0 if factor >= 1e30 else pytest.approx(1 / 3))


def test_the_scale_is_a_power_of_two() -> None:
    assert find_scale(np.zeros(2)) == find_scale(np.array([])) == 1.0
    assert find_scale(np.array([3.0, np.inf]), np.array([-5.0, np.nan])) == 8.0
    assert np.isfinite(find_scale(np.array([np.finfo(np.float64).max])))


def test_sequences_are_passed_over(tmp_path: Path) -> None:
    body = "both = SequenceConstruct (x, x) a = ConcatFromSequence <axis = 0> (both) b = {} (a) y = ReduceSum (b)"
    paths = [write(tmp_path, op, body.format(op), "float[1,1] y") for op in ("Neg", "Abs")]
    found = find_divergence(paths[0], paths[1], FEED, limit=0.1)
    assert found is not None and found.tensor == "b"


def test_a_graph_that_does_not_run_names_nothing(tmp_path: Path) -> None:
    before = write(tmp_path, "before", "a = Neg (x) y = Abs (a)")
    after = write(tmp_path, "after", "a = Neg (x) i = Constant <value_ints = [7]> () b = Gather (a, i) y = Add (a, b)")
    assert find_divergence(before, after, FEED, limit=0.1) is None


@pytest.mark.parametrize(("wrong", "chunks"), [(3, 1), (80, 20)])
def test_memory_is_that_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, chunks: int) -> None:
    """Eighty tensors of 4 KB in two graphs, four of each at a time; nothing beyond the culprit's chunk is computed."""
    monkeypatch.setattr(culprit, "CHUNK_BYTES", 32 << 10)
    held: list[int] = []
    run = culprit._run

    def watch(*args: Any) -> dict[str, np.ndarray]:
        found = run(*args)
        held.append(sum(array.nbytes for array in found.values()))
        return found

    monkeypatch.setattr(culprit, "_run", watch)
    paths = []
    for op in ("Neg", "Identity"):
        chain = " ".join(f"h{i} = {op if i == wrong else 'Neg'} (h{i - 1})" for i in range(2, 81))
        text = f"""<ir_version: 10, opset_import: ["": 18]> g (float[n,1024] x) => (float[n,1024] y) {{
            h1 = Neg (x) {chain} y = Identity (h80)
        }}"""
        paths.append(tmp_path / f"{op}.onnx")
        onnx.save(onnx.parser.parse_model(text), paths[-1])
    found = find_divergence(paths[0], paths[1], {"x": np.ones((1, 1024), np.float32)}, limit=0.1)
    assert found is not None and found.tensor == f"h{wrong}"
    assert held == [16 << 10] * 2 * chunks + [4 << 10] * 2, "the last two are the culprit's, once more"
