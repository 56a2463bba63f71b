"""Embedding: what an app needs installed, what an import costs, and the example as its reader would run it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.small_bundles import SIDE, write_classifier

FORBIDDEN = (
    "torch", "onnx", "onnxscript", "onnx_ir", "pydantic", "pydantic_core", "click", "yaml", "rich", "polygraphy",
    "safetensors", "PIL", "ml_dtypes",
)  # fmt: skip


def write_picture(path: Path) -> Path:
    """A PGM with a white bar on the right."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[:, -1] = 255
    path.write_bytes(b"P5 %d %d 255\n" % (SIDE, SIDE) + pixels.tobytes())
    return path


def run_python(code: str, *arguments: str | Path, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_app_runs_where_nothing_else_is_installed(tmp_path: Path, environment: dict[str, str]) -> None:
    """Every module but numpy and ONNX Runtime is blocked, so that an import of it would fail."""
    code = f"""
import json, sys
for name in {FORBIDDEN!r}:
    sys.modules[name] = None
from metagen_deploy import load
with load(sys.argv[1]) as session:
    print(json.dumps([session.pipeline.classify(sys.argv[2], top_k=1)[0][0], session.describe()]))
"""
    bundle, picture = write_classifier(tmp_path / "c.bundle"), write_picture(tmp_path / "right.pgm")
    label, notes = json.loads(run_python(code, bundle, picture, environment=environment, folder=tmp_path))
    assert label == "right"
    assert "part/classifier.onnx on onnxruntime-cpu, fp32" in notes


def test_importing_the_runtime_imports_no_backend(tmp_path: Path, environment: dict[str, str]) -> None:
    code = "import sys, engines.runtime; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    backends = ("onnxruntime", "tensorrt", "tensorrt_rtx", "tokenizers")
    assert run_python(code, *FORBIDDEN, *backends, environment=environment, folder=tmp_path) == "[]\n"


def test_a_bundle_without_its_backend_says_what_to_install(tmp_path: Path, environment: dict[str, str]) -> None:
    code = """
import sys
sys.modules["onnxruntime"] = None
from metagen_deploy import load
from specs.errors import PreflightError
try:
    load(sys.argv[1])
except PreflightError as error:
    print(error)
"""
    bundle = write_classifier(tmp_path / "c.bundle")
    printed = run_python(code, bundle, environment=environment, folder=tmp_path)
    assert "the package 'onnxruntime' is not installed (pip install onnxruntime)" in printed


def test_the_example_classifies_a_picture(tmp_path: Path, repository: Path, environment: dict[str, str]) -> None:
    bundle, picture = write_classifier(tmp_path / "c.bundle"), write_picture(tmp_path / "right.pgm")
    done = subprocess.run(
        [sys.executable, repository / "examples" / "embed.py", bundle, picture],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "classifier: part/classifier.onnx on onnxruntime-cpu, fp32"
    assert lines[-3].split() == ["right", "100.0%"]
    assert {line.split()[0] for line in lines[-2:]} == {"left", "middle"}


def test_the_example_has_twenty_lines_of_code(repository: Path) -> None:
    source = (repository / "examples" / "embed.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source), clean=False) or ""
    code = [line for line in source.replace(docstring, "").splitlines() if line.strip().strip('"')]
    assert len(code) <= 20
