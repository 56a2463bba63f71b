"""`run`, `check` and `inspect` as a user types them, on small real bundles."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metagen_deploy.cli import run_command
from tests.small_bundles import make_decoder_weights, write_classifier, write_clip, write_decoder

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "classifier.bundle")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.pgm"
    path.write_bytes(b"P5 4 4 255\n" + bytes(range(0, 160, 10)))
    return path


def test_a_picture_gives_labels(classifier: Path, picture: Path, metagen: Run) -> None:
    done = metagen("run", classifier, picture)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["picture", "label", "probability"]
    assert "classifier: part/classifier.onnx on onnxruntime-cpu, fp32\n" in done.stderr
    named = metagen("run", classifier, "--input", f"image={picture}")
    assert named.stdout == done.stdout


def test_tensors_give_tensors(classifier: Path, tmp_path: Path, metagen: Run) -> None:
    np.save(tmp_path / "image.npy", np.zeros((2, 1, 4, 4), np.float32))
    done = metagen("run", classifier, "--input", "image=image.npy", "-o", "answer.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "answer.npz") as answer:
        assert answer["logits"].shape == (2, 3)


def test_a_prompt_is_continued(tmp_path: Path, metagen: Run) -> None:
    bundle = write_decoder(tmp_path / "decoder.bundle", make_decoder_weights())
    done = metagen("run", bundle, "--prompt", "ab", "-o", "answer.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "answer.json").read_text())
    assert row["prompt"] == "ab"
    assert done.stdout == row["continuation"] + "\n"


def test_a_picture_is_compared_with_texts(tmp_path: Path, picture: Path, metagen: Run) -> None:
    bundle = write_clip(tmp_path / "clip.bundle")
    done = metagen("run", bundle, picture, "--prompt", "a cat", "--prompt", "a dog")
    assert done.returncode == 0, done.stderr
    assert "a cat" in done.stdout
    assert "a dog" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: this bundle takes pictures"),
        (["missing.png"], "error: the picture cannot be read"),
        (["--prompt", "hello"], "error: this bundle takes pictures"),
        (["--input", "imgae=x.npy"], "did you mean 'image'?"),
        (["picture.pgm", "-o", "answer.csv"], "allowed: .npz, .json, .txt"),
        (["picture.pgm", "-o", "nowhere/answer.json"], "error: the folder to write to does not exist"),
        (["picture.pgm", "-o", "x" * 300 + ".json"], "error: this path cannot be used"),
        (["picture.pgm", "-o", "answer.npz"], "error: this answer is text, not tensors"),
        (
            ["picture.pgm", "-o", "answer.gif"],
            "holds nothing that a .gif could\n  got:     answer.gif\n  allowed: .json, .txt",
        ),
    ],
)
def test_what_cannot_be_answered_is_said(
    arguments: list[str],
    message: str,
    classifier: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(picture.parent)
    before = sorted(picture.parent.iterdir())
    assert run_command(["run", str(classifier), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert sorted(picture.parent.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that only the kernel fills")
def test_where_no_file_can_be_made(classifier: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Known before the work, and not after it."""
    assert run_command(["run", str(classifier), str(picture), "-o", "/proc/answer.json"]) == 1
    message = "error: no file can be made here\n  where:   /proc\n  fix:     choose another folder with -o\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("verb", ["run", "check", "build", "bench"])
def test_what_is_no_bundle_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([verb, str(tmp_path)]) == 1
    assert "is not a bundle: it has no manifest.json" in capsys.readouterr().err


def test_inspect_tells_a_bundle_a_model_and_nothing_apart(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["inspect", str(classifier)]) == 0
    assert "portable" in capsys.readouterr().out
    assert run_command(["inspect", str(classifier / "part" / "classifier.onnx")]) == 0
    assert "Operators" in capsys.readouterr().out
    assert run_command(["inspect", str(tmp_path / "nothing.onnx")]) == 1
    assert capsys.readouterr().err.startswith("error: there is no such file or folder")


def test_a_changed_byte_is_refused(classifier: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier / "part" / "classifier.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    assert run_command(["run", str(classifier), str(picture)]) == 1
    assert "error: a file of the bundle was changed" in capsys.readouterr().err


def test_ctrl_c_in_the_middle_of_an_export_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    # Where pytest itself runs in the background, SIGINT is ignored and a child would inherit that.
    start = "from signal import *; signal(SIGINT, default_int_handler); from metagen_deploy.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "export", "image_vit_digits", "-o", "digits.bundle"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "interrupted, nothing was left half-written"
    assert out == ""
    assert list(tmp_path.iterdir()) == []
