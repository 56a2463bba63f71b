"""Python 3.10, as on a Jetson: the runtime with numpy and ONNX Runtime alone gives the same answers as here, and the
command line works with what it needs beside them.

The environment is made once, outside the checkout (`$XDG_CACHE_HOME/metagen-deploy-tests`), from a Python 3.10 of this
machine and the package registry; without either the tests are skipped and say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engines.runtime import load
from tests.engines.bundles import make_model, make_weights, write_bundle
from tests.small_bundles import SIDE, make_decoder_weights, write_classifier, write_decoder

PACKAGES = ("numpy==2.2.6", "onnxruntime==1.23.2")  # the newest with wheels for Python 3.10
COMMAND_LINE = ("click", "pyyaml", "pydantic", "rich", "polygraphy")
INSTALL_SECONDS = 300

SCRIPT = """
import json, sys
import numpy as np
from metagen_deploy import load

classifier, decoder, images, picture = sys.argv[1:]
with load(classifier) as session:
    result = {
        "logits": session.run({"image": np.load(images)})["logits"].tolist(),
        "label": session.pipeline.classify(picture, top_k=1)[0][0],
        "notes": session.describe(),
    }
with load(decoder) as session:
    result["text"] = session.pipeline.generate(["hello", "hi"], max_new_tokens=50)
result["python"] = sys.version_info[:2]
result["modules"] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps(result))
"""


def find_python310() -> Path | None:
    """A Python 3.10 of pyenv or of PATH that starts."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*sorted(pyenv.glob("3.10*/bin/python3.10"), reverse=True)]
    if on_path := shutil.which("python3.10"):
        found.append(Path(on_path))
    for python in found:
        if subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def make_environment(packages: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages, made where it is not there yet."""
    base = find_python310()
    if base is None:
        pytest.skip("no Python 3.10 on this machine (pyenv install 3.10 adds one)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metagen-deploy-tests"
    folder = cache / ("py310-" + "-".join(packages).replace("==", "-"))
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    cache.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([base, "-m", "venv", folder], check=True, capture_output=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", *packages],
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"the packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    (folder / "complete").touch()
    return python


@pytest.fixture(scope="module")
def python310() -> Path:
    return make_environment(PACKAGES)


@pytest.fixture(scope="module")
def command310() -> Path:
    return make_environment((*PACKAGES, *COMMAND_LINE))


def test_python_310_gives_the_same_answers(tmp_path: Path, python310: Path, repository: Path) -> None:
    classifier = write_classifier(tmp_path / "c.bundle")
    decoder = write_decoder(tmp_path / "d.bundle", make_decoder_weights())
    images = np.random.default_rng(0).random((3, 1, SIDE, SIDE), np.float32)
    np.save(tmp_path / "images.npy", images)
    picture = tmp_path / "right.pgm"
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[:, -1] = 255
    picture.write_bytes(b"P5 %d %d 255\n" % (SIDE, SIDE) + pixels.tobytes())

    done = subprocess.run(
        [python310, "-W", "error", "-c", SCRIPT, classifier, decoder, tmp_path / "images.npy", picture],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there["python"] == [3, 10]

    here = load(classifier).run({"image": images})["logits"]
    assert np.abs(np.array(there["logits"]) - here).max() < 1e-5
    assert there["label"] == "right"
    assert there["notes"] == load(classifier).describe()
    assert there["text"] == load(decoder).pipeline.generate(["hello", "hi"], max_new_tokens=50)
    assert not {"torch", "onnx", "pydantic", "click", "yaml", "rich", "polygraphy"} & set(there["modules"])


def test_the_command_line_works_on_python_310(tmp_path: Path, command310: Path, repository: Path) -> None:
    """As on a Jetson, where engines are built and checked: every module that a verb there imports, and every spec."""
    write_bundle(tmp_path / "c.bundle", {("cpu", "fp32"): make_model(make_weights())})

    def deploy(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command310, "-W", "error", "-m", "metagen_deploy", *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    for arguments in (("specs",), ("targets",), ("doctor",), ("inspect", "c.bundle"), ("check", "c.bundle")):
        done = deploy(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "video_to_text" in deploy("specs").stdout
    refused = deploy("build", "c.bundle", "--target", "h200@trt8.6")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused.stderr
