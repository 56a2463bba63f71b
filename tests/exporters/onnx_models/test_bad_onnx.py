"""ONNX files that are damaged, or made to hurt: functions of 2^30 nodes, names no archive takes, sizes that lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters.onnx_models.function_sizes import require_finite_functions
from exporters.onnx_models.read import read_source
from metagen_deploy.cli import run_command
from specs.errors import GraphError
from tests.refusals import make_model, refuse

Capture = pytest.CaptureFixture[str]
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
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
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


# --- files that are no model, or not all there ----------------------------------------------------------------------


def save_external(location: str) -> Callable[[Path], None]:
    """A model whose weights claim to lie at `location`."""

    def write(path: Path) -> None:
        model = make_model()
        onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
        light = onnx.load(path, load_external_data=False)
        entry = next(e for e in light.graph.initializer[0].external_data if e.key == "location")
        entry.value = location
        path.write_bytes(light.SerializeToString())

    return write


def save_link(path: Path) -> None:
    save_external("link.data")(path)
    (path.parent / "link.data").symlink_to("/etc/hostname")


NOT_ONNX = "the file is not ONNX, or it was truncated\n  where:   m.onnx\n  got:     {...}\n  fix:     export it again"
OUTSIDE = (
    "the data of 'w' lies outside the model's folder\n  where:   m.onnx\n  got:     '%s'\n"
    "  fix:     keep it beside the .onnx file, and its location relative"
)
ONNX_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such ONNX file\n  where:   m.onnx\n  fix:     check the path"),
    "empty": (
        lambda path: path.touch(),
        "the ONNX file is empty\n  where:   m.onnx\n  fix:     copy or export it again",
    ),
    "truncated": (lambda path: path.write_bytes(make_model().SerializeToString()[:-200]), NOT_ONNX),
    "not ONNX": (lambda path: path.write_text("hello\n" * 99), NOT_ONNX),
    "old opset": (
        lambda path: onnx.save(make_model(5), path),
        (
            f"opset 5 is not supported\n"
            "  where:   m.onnx\n"
            f"  allowed: opset 7 to {onnx.defs.onnx_opset_version()}\n"
            "  fix:     export the model again, or convert it with onnx.version_converter"
        ),
    ),
    "new opset": (
        lambda path: onnx.save(make_model(99), path),
        (
            f"opset 99 is not supported\n"
            "  where:   m.onnx\n"
            f"  allowed: opset 7 to {onnx.defs.onnx_opset_version()}\n"
            "  fix:     export the model again, or convert it with onnx.version_converter"
        ),
    ),
    "data above": (save_external("../w.data"), OUTSIDE % "../w.data"),
    "data elsewhere": (save_external("/etc/hostname"), OUTSIDE % "/etc/hostname"),
    "data behind a link": (save_link, OUTSIDE % "link.data"),
    "data missing": (
        save_external("gone.data"),
        "the file with the data of 'w' is missing\n  where:   gone.data\n  fix:     copy it beside the .onnx file",
    ),
}


@pytest.mark.parametrize("case", ONNX_FILES)
def test_onnx_files(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = ONNX_FILES[case]
    write(tmp_path / "m.onnx")
    refuse(["export", "m.onnx", "-o", "x.bundle"], message, capsys)
    refuse(["build", "m.onnx"], message, capsys)
