"""Raw pictures through a host loop on numpy alone: of equal and mixed sizes, grey, transparent, tiny, too large."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.runtime import load
from specs.errors import InputError
from tests.small_bundles import change_manifest, write_raw_classifier


def make_colour(height: int, width: int, colour: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, len(colour))).copy()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_classifier(tmp_path_factory.mktemp("raw") / "raw.bundle")


def name_best(bundle: Path, *pictures: str | Path | np.ndarray) -> list[str]:
    with load(bundle) as session:
        return [best[0][0] for best in session.pipeline.classify_all(pictures, top_k=1)]


def test_pictures_of_one_size_run_in_one_call(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of several sizes in as many as there are sizes, at most three rows a call; answers keep their order."""
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    pictures = [make_colour(*size, colour) for size, colour in [((5, 7), red), ((40, 60), green), ((5, 7), blue)]]
    with load(bundle) as session:
        graph = session.graphs["classifier"]
        run, shapes = graph.run, list[tuple[int, ...]]()

        def record(feed: dict[str, np.ndarray], *args: object, **options: object) -> object:
            shapes.append(feed["pixels"].shape)
            return run(feed, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(graph, "run", record)
        found = session.pipeline.classify_all([*pictures, *pictures[:2]], top_k=1)
    assert [best[0][0] for best in found] == ["r", "g", "b", "r", "g"]
    assert shapes == [(2, 5, 7, 3), (1, 40, 60, 3), (1, 5, 7, 3), (1, 40, 60, 3)]


def test_what_a_picture_may_be(bundle: Path, tmp_path: Path) -> None:
    """One pixel, grey, RGBA, floats: each as the three channels that the graph takes."""
    Image.fromarray(make_colour(3, 2, (10, 200, 30, 255)), "RGBA").save(tmp_path / "alpha.png")
    with load(bundle) as session:
        pictures = session.pipeline._pictures
        grey = np.array([[7]], np.uint8)
        logits = pictures.run([grey, tmp_path / "alpha.png", np.full((2, 9, 3), 0.2, np.float32)])["logits"]
    np.testing.assert_allclose(logits * 25.5, [[7, 7, 7], [10, 200, 30], [51, 51, 51]], atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "expected"), [(None, [0, 200, 0]), ({"resize": "stretch", "size": 4}, [127, 227, 127])]
)
def test_what_is_transparent(steps: dict[str, object] | None, expected: list[int], tmp_path: Path) -> None:
    """White under half of green, where the model's steps say what its library does; else alpha is dropped."""
    write_raw_classifier(tmp_path / "raw.bundle", steps=steps)
    with load(tmp_path / "raw.bundle") as session:
        logits = session.pipeline._pictures.run([make_colour(3, 3, (0, 200, 0, 128))])["logits"]
    np.testing.assert_allclose(logits[0] * 25.5, expected, atol=1e-4)


def test_a_picture_that_is_too_large_says_how_to_export(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(make_colour(41, 9, (1, 2, 3))).save(tmp_path / "tall.png")
    with pytest.raises(InputError) as caught:
        name_best(bundle, tmp_path / "tall.png")
    assert str(caught.value) == (
        "the picture has a size that the graph does not take\n"
        f"  where:   {tmp_path / 'tall.png'}\n"
        "  got:     height 41, width 9\n"
        "  allowed: height 1 to 40, width 1 to 60\n"
        "  fix:     resize it, or export with --dim height=1:8:41"
    )


def test_a_graph_of_one_size_takes_no_other(tmp_path: Path) -> None:
    """`resize: none`: bytes of the model's own size, which no --dim changes."""
    bundle = write_raw_classifier(tmp_path / "raw.bundle", fixed=True)
    assert name_best(bundle, make_colour(4, 4, (1, 2, 3))) == ["b"]
    with pytest.raises(InputError) as caught:
        name_best(bundle, make_colour(4, 5, (1, 2, 3)))
    assert "allowed: height 4, width 4\n  fix:     resize it" in str(caught.value)
    assert "--dim" not in str(caught.value)


def test_run_takes_a_picture_as_it_is(bundle: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """By the command line, as a file and as the input called `pixels`."""
    Image.fromarray(make_colour(13, 29, (9, 1, 2))).save(tmp_path / "red.png")
    for source in (["red.png"], ["--input", "pixels=red.png"]):
        done = subprocess.run(
            [sys.executable, "-m", "metagen_deploy", "run", str(bundle), *source, ],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "red.png" in done.stdout
        assert " r " in done.stdout


def test_a_manifest_whose_graph_takes_no_picture_is_refused(tmp_path: Path) -> None:
    bundle = write_raw_classifier(tmp_path / "raw.bundle")
    change_manifest(bundle, pipeline={"kind": "image-classification", "graph": "classifier", "labels": []})
    with pytest.raises(Exception, match=r"pipeline\.image is missing"):
        name_best(bundle, make_colour(4, 4, (1, 2, 3)))
