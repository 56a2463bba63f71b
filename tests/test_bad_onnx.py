"""ONNX files made to hurt: functions without an end, or of 2^30 nodes; names that no archive takes; sizes that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters.function_sizes import require_finite_functions
from exporters.read_model import read_source
from metagen_deploy.cli import run_command
from specs.errors import GraphError
from tests.refusals import refuse

HEADER = '<ir_version: 10, opset_import: ["": 21, "f": 1]>\n'
BRANCHES = "then_branch = t () => (a) { a = f.F(p) }, else_branch = e () => (b) { b = Neg(p) }"
FUNCTION = '<domain: "f", opset_import: ["": 21, "f": 1]>\n'


def nest(depth: int) -> onnx.ModelProto:
    """F0 calls F1 twice, F1 calls F2 twice, and so on: 2^depth nodes."""
    text = HEADER + "g (float[N, 4] x) => (float[N, 4] y) { y = f.F0(x) }\n"
    for level in range(depth):
        text += FUNCTION + f"F{level} (p) => (q) {{ t = f.F{level + 1}(p) q = f.F{level + 1}(t) }}\n"
    return onnx.parser.parse_model(text + FUNCTION + f"F{depth} (p) => (q) {{ q = Neg(p) }}\n")


@pytest.mark.parametrize("depth", [24, 400])
def test_functions_of_too_many_nodes(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of some kilobytes that every runtime would inline for ever."""
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(nest(depth).SerializeToString())
    refuse(
        ["export", "m.onnx", "-o", "x.bundle"],
        "the model's functions become too many nodes when they are inlined\n"
        "  where:   m.onnx\n"
        f"  got:     {'16777216' if depth == 24 else 'over 10^15'} nodes\n"
        "  allowed: up to 2000000\n"
        "  fix:     export the model again without functions that call one another so often",
        capsys,
    )


def test_functions_that_call_one_another_a_little_are_taken(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(nest(3).SerializeToString())
    assert run_command(["export", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.bundle")]) == 0


@pytest.mark.parametrize(
    "bodies",
    [
        ["F (p) => (q) { q = f.F(p) }"],
        ["F (p) => (q) { q = f.G(p) }", "G (p) => (q) { q = f.F(p) }"],
        [f"F (p) => (q) {{ c = Constant <value = bool {{1}}> () q = If (c) <{BRANCHES}> }}"],
    ],
    ids=["itself", "each other", "in a branch"],
)
def test_functions_without_an_end(bodies: list[str]) -> None:
    text = HEADER + "g (float[N, 4] x) => (float[N, 4] y) { y = f.F(x) }\n"
    model = onnx.parser.parse_model(text + "".join(f"{FUNCTION}{body}\n" for body in bodies))
    with pytest.raises(GraphError, match=r"the function 'f::\w' calls itself"):
        require_finite_functions(Path("m.onnx"), model)


def test_a_function_may_be_called_as_an_operator_is(tmp_path: Path) -> None:
    """Relu of another domain is another operator."""
    text = HEADER + "g (float[N, 4] x) => (float[N, 4] y) { a = f.Relu(x) b = Relu(a) y = f.Relu(b) }\n"
    text += FUNCTION + "Relu (p) => (q) { t = Neg(p) q = Abs(t) }\n"
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    targets = ["--target", "cpu", "--target", "rtx-4090", "--target", "a100@trt8.6"]
    assert run_command(["export", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.bundle"), *targets]) == 0


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_name_that_no_archive_takes(side: str, tmp_path: Path) -> None:
    names = {"input": ("x" * 70_000, "y"), "output": ("x", "y" * 70_000)}[side]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in names]
    graph = helper.make_graph([helper.make_node("Relu", names[:1], names[1:])], "g", ends[:1], ends[1:])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    with pytest.raises(GraphError, match="a name of 70000 characters is too long"):
        read_source(tmp_path / "m.onnx")


@pytest.mark.parametrize("dims", [[1 << 20, 1 << 20], [-4, 4], [1 << 62, 1 << 62], [0, 1 << 62]])
def test_weights_whose_sizes_lie(dims: list[int], tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=np.zeros(16, "<f4").tobytes())
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    with pytest.raises(GraphError):
        read_source(tmp_path / "m.onnx")
