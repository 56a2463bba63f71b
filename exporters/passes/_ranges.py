"""The calibrated range of a tensor, and where passes find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from specs.errors import CalibrationError

_RANGES_KEY = "metagen.ranges"


@dataclass(frozen=True)
class Range:
    """The values that INT8 must represent; what lies outside saturates. In the tensor's own units."""

    low: float
    high: float


def set_ranges(model: ir.Model, ranges: Mapping[str, Range]) -> None:
    """Hand ranges to the passes that will run on `model`."""
    model.meta[_RANGES_KEY] = dict(ranges)


def ranges_of(model: ir.Model) -> Mapping[str, Range]:
    """Raises CalibrationError when nothing was calibrated."""
    ranges: Any = model.meta.get(_RANGES_KEY)
    if not ranges:
        raise CalibrationError(
            "int8 for TensorRT needs calibrated ranges, and there are none",
            fix="give calibration data: `calibration` in the spec, or --calibration PATH",
        )
    found: Mapping[str, Range] = ranges
    return found
