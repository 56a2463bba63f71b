"""Which of the media that a model reads a source is taken for."""

from __future__ import annotations

import numpy as np
import pytest

from engines.runtime.pipelines.stages.media import name_kind
from specs.errors import InputError

SOUND, PICTURE, FILM = np.zeros(9, np.float32), np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5, 3), np.uint8)
ALL = ("sound", "picture", "film")


@pytest.mark.parametrize(
    ("source", "kinds", "kind"),
    [
        (SOUND, ALL, "sound"),
        ("speech.WAV", ALL, "sound"),
        (PICTURE, ALL, "picture"),
        (FILM, ALL, "film"),
        (PICTURE, ("film",), "film"),  # of one frame
        (FILM, ("sound", "picture"), "picture"),  # the first of them
        (SOUND, ("picture", "sound"), "sound"),
    ],
)
def test_a_source_is_of_one_kind(source: np.ndarray | str, kinds: tuple[str, ...], kind: str) -> None:
    assert name_kind(source, kinds) == kind


@pytest.mark.parametrize(
    ("source", "kinds", "problem"),
    [
        (SOUND, ("picture", "film"), "this bundle does not read sounds"),
        ("speech.wav", ("picture",), "this bundle does not read sounds"),
        (PICTURE, ("sound",), "this bundle does not read pictures or films"),
    ],
)
def test_what_a_model_does_not_read_is_refused(source: np.ndarray | str, kinds: tuple[str, ...], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        name_kind(source, kinds)
    assert caught.value.problem == problem
    assert caught.value.allowed == " and ".join(f"{kind}s" for kind in kinds)
