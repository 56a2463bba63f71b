"""How a refusal is tested: one small exported bundle, and the whole message with nothing left behind."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from metagen_deploy.cli import run_command

HAS_COMPILER = importlib.util.find_spec("tensorrt_rtx") is not None


def make_model(opset: int = 18) -> onnx.ModelProto:
    """x [batch, 32] times a matrix of 4 kB, which a bundle keeps as external data."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(np.eye(32, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write_exported(folder: Path) -> None:
    """`net.onnx`, `x.npz` for it, and its `net.bundle`, with an engine where there is a compiler."""
    onnx.save(make_model(), folder / "net.onnx")
    np.savez(folder / "x.npz", x=np.zeros((2, 32), np.float32))
    bundle = str(folder / "net.bundle")
    targets = ["--target", "cpu", "--target", "rtx-4090"]
    assert run_command(["export", str(folder / "net.onnx"), "-o", bundle, *targets]) == 0
    assert run_command(["build", bundle]) == 0


def refuse(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], *, status: int = 1) -> None:
    """The command ends with `message` and `status`, and leaves the current folder as it was.

    In `message`, {here} is the current folder, and {...} stands for digits and words that another library chose.
    """
    capsys.readouterr()
    before = read_tree(Path())
    assert run_command(arguments) == status
    said = capsys.readouterr().err
    check_message(said, message)
    assert read_tree(Path()) == before


def check_message(said: str, message: str) -> None:
    """What stderr says from `error:` on is `message` in full."""
    wanted = f"error: {message}\n".replace("{here}", str(Path().absolute()))
    got = said[said.index("error: ") :]
    if "{...}" not in wanted:
        assert got == wanted
    pattern = ".+".join(re.escape(part) for part in wanted.split("{...}"))
    assert re.fullmatch(pattern, got), f"{got}\nis not\n{wanted}"


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder below `folder`, with its content."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def spell(verb: str, bundle: str = "net.bundle") -> list[str]:
    """A whole command line of a verb that takes a bundle."""
    return [verb, bundle, "x.npz"] if verb == "run" else [verb, bundle]
