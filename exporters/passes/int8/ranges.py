"""What was measured of a tensor on calibration data, and where passes find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from specs.errors import CalibrationError

_RANGES_KEY = "metagen.ranges"


@dataclass(frozen=True)
class Range:
    """The values that INT8 must represent; what lies outside saturates. In the tensor's own units.

    `rows` are some of the tensor's rows [R, K], as they came: ways to quantise it are tried on them; `seen` says how
    many there were.
    """

    low: float
    high: float
    rows: np.ndarray | None = field(default=None, compare=False, repr=False)
    seen: int = field(default=0, compare=False, repr=False)


def set_ranges(model: ir.Model, ranges: Mapping[str, Range]) -> None:
    """Hand ranges to the passes that will run on `model`."""
    model.meta[_RANGES_KEY] = dict(ranges)


def find_ranges(model: ir.Model) -> Mapping[str, Range]:
    """Empty when nothing was calibrated."""
    ranges: Any = model.meta.get(_RANGES_KEY) or {}
    found: Mapping[str, Range] = ranges
    return found


def require_ranges(model: ir.Model) -> Mapping[str, Range]:
    """Raises CalibrationError when nothing was calibrated."""
    ranges = find_ranges(model)
    if not ranges:
        raise CalibrationError(
            "int8 for TensorRT needs calibrated ranges, and there are none",
            fix="give calibration data: `calibration` in the spec, or --calibration PATH",
        )
    return ranges
