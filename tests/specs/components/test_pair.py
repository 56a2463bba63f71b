"""Which options belong to which fusion of a pair: no other takes them, and none goes without."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from specs.components import FusionComponent


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "fusion.attention", "projection_size": 8, "temperature": 0.5},
        {"kind": "fusion.attention", "projection_size": 8},
        {"kind": "fusion.late", "projection_size": 8},
        {"kind": "fusion.gated", "projection_size": 8, "temperature": 1.0},
        {"kind": "fusion.sigmoid"},
    ],
)
def test_options_of_its_own_are_taken(options: dict[str, Any]) -> None:
    FusionComponent.model_validate(options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "fusion.late", "projection_size": 8, "temperature": 0.5}, "temperature belongs to fusion.attention"),
        ({"kind": "fusion.sigmoid", "temperature": 2.0}, "temperature belongs to fusion.attention"),
        (
            {"kind": "fusion.sigmoid", "projection_size": 8},
            "projection_size belongs to every fusion but fusion.sigmoid",
        ),
        ({"kind": "fusion.late"}, "projection_size belongs to every fusion but"),
    ],
)
def test_options_of_another_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        FusionComponent.model_validate(options)
