"""Shipped specs that build in a moment, and one of them with other weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.errors import WeightsError
from specs.handlers import get_handler
from specs.load import load_spec
from specs.schema import Spec, WeightsSpec

TINY = ("image_vit_base:tiny", "image_vit_digits", "text_llm_tiny:tiny", "multimodal_clip:tiny")

DIGITS = load_spec("image_vit_digits")

WEIGHTS = Path(DIGITS.weights.source)


def with_weights(path: Path) -> Spec:
    return DIGITS.model_copy(update={"weights": WeightsSpec(source=str(path))})


def refuse(spec: Spec) -> str:
    with pytest.raises(WeightsError) as caught:
        get_handler(spec).build(spec)
    return str(caught.value)
