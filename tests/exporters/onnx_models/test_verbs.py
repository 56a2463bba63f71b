"""The command line on files that other people made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from metagen_deploy.cli import run_command
from tests.exporters.onnx_models import odd_models

pytestmark = pytest.mark.usefixtures("check_in_this_process")


def test_the_verbs_on_a_file(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = models("keywords")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4)).astype(np.float32)
    np.save("x.npy", x)
    assert run_command(["build", str(path), "--target", "cpu"]) == 0
    assert path.with_suffix(".bundle").is_dir()
    assert run_command(["export", str(path), "-o", "k.bundle", "--dim", "batch=1:2:4"]) == 0
    assert "takes batch 1..4 (tuned for 2)" in capsys.readouterr().out
    assert (
        run_command(["run", "k.bundle", "--input", "allow_pickle=x.npy", "--input", "file=x.npy", "-o", "o.npz"]) == 0
    )
    with np.load("o.npz") as answers:
        assert np.array_equal(answers["args"], x + x)
        assert np.array_equal(answers["kwds"], x - x)
    for verb in ("check", "inspect", "build"):
        assert run_command([verb, "k.bundle"]) == 0
    assert run_command(["inspect", str(path)]) == 0
    assert run_command(["inspect", str(models("external_many_files"))]) == 0
    assert "weights lie in w0, w1, w2" in capsys.readouterr().out
    assert run_command(["export", str(models("unknown_domain")), "-o", "u.bundle"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_an_output_may_be_called_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g () => (float[1] y) { y = Sin(w) }')
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    odd_models.rename(model, {"y": "file"})
    Path("m.onnx").write_bytes(model.SerializeToString())
    assert run_command(["export", "m.onnx", "-o", "m.bundle"]) == 0
    assert run_command(["run", "m.bundle", "-o", "m.npz"]) == 0
    with np.load("m.npz") as answers:
        assert np.allclose(answers["file"], np.sin(1.0))


@pytest.mark.parametrize("name", odd_models.ALL)
def test_everything_can_be_inspected(
    name: str, models: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["inspect", str(models(name))]) == 0, capsys.readouterr().err
