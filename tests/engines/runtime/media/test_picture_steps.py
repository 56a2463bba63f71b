"""Which steps a manifest may ask for: sizes from one pixel to the longest side, one number or two."""

from __future__ import annotations

from typing import Any

import pytest

from engines.runtime.media.picture_steps import LONGEST_SIDE, check_steps
from specs.errors import BundleError


@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"resize": "stretch", "size": 1},
        {"resize": "stretch", "size": [1, LONGEST_SIDE], "crop": LONGEST_SIDE},
        {"resize": "shortest_edge", "size": LONGEST_SIDE, "crop": (1, 2)},
        {"resize": "none", "size": "of no use here", "crop": 1},
    ],
)
def test_sizes_up_to_the_longest_side_are_taken(steps: dict[str, Any]) -> None:
    check_steps(steps)


@pytest.mark.parametrize(
    ("steps", "key", "allowed"),
    [
        ({"resize": "stretch", "size": 0}, "size", "a whole number of pixels, or two"),
        ({"resize": "stretch", "size": [4, LONGEST_SIDE + 1]}, "size", "a whole number of pixels, or two"),
        ({"resize": "stretch", "size": [4, 4, 4]}, "size", "a whole number of pixels, or two"),
        ({"resize": "stretch", "size": True}, "size", "a whole number of pixels, or two"),
        ({"resize": "stretch"}, "size", "a whole number of pixels, or two"),
        ({"resize": "shortest_edge", "size": [4, 4]}, "size", "a whole number of pixels"),
        ({"resize": "shortest_edge", "size": 4, "crop": [4]}, "crop", "a whole number of pixels, or two"),
        ({"crop": -1}, "crop", "a whole number of pixels, or two"),
    ],
)
def test_what_is_no_size_is_refused(steps: dict[str, Any], key: str, allowed: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_steps(steps)
    assert caught.value.problem == f"manifest: pipeline.image.steps.{key} is no size"
    assert caught.value.allowed == allowed
