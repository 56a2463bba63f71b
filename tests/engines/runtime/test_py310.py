"""The runtime on Python 3.10 with numpy and ONNX Runtime alone, as on a Jetson: the same answers as here.

The environment is made once, outside the checkout (`$XDG_CACHE_HOME/metagen-deploy-tests`), from a Python 3.10 of this
machine and the package registry; without either the tests are skipped and say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engines.runtime import load
from tests.small_bundles import SIDE, make_decoder_weights, write_classifier, write_decoder

PACKAGES = ("numpy==2.2.6", "onnxruntime==1.23.2")  # the newest with wheels for Python 3.10
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


@pytest.fixture(scope="module")
def python310() -> Path:
    base = find_python310()
    if base is None:
        pytest.skip("no Python 3.10 on this machine (pyenv install 3.10 adds one)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metagen-deploy-tests"
    folder = cache / ("py310-" + "-".join(PACKAGES).replace("==", "-"))
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    cache.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([base, "-m", "venv", folder], check=True, capture_output=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", *PACKAGES],
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"numpy and onnxruntime cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    (folder / "complete").touch()
    return python


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
