"""Which of an engine's optimisation profiles takes which shapes: the first that fits, the one tuned nearest.

profile 0: smallest .. usual sizes, tuned for the usual        batch 1 .. 1
profile 1: smallest .. largest sizes, tuned for the largest    batch 1 .. 32
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]
#: Input -> (smallest, largest) shape, of one profile.
ShapeRanges = Mapping[str, tuple[Shape, Shape]]


def read_shape_ranges(engine: Any, inputs: Sequence[str]) -> tuple[ShapeRanges, ...]:
    """The ranges of every profile of a TensorRT engine, in the engine's order."""
    profiles = []
    for index in range(engine.num_optimization_profiles):
        shapes = {name: engine.get_tensor_profile_shape(name, index) for name in inputs}
        profiles.append({name: (tuple(found[0]), tuple(found[2])) for name, found in shapes.items()})
    return tuple(profiles)


def choose_profile(profiles: Sequence[ShapeRanges], shapes: Mapping[str, Shape]) -> int:
    """The first profile that takes all of `shapes`; 0 where none does, so that TensorRT refuses in its own words."""
    for index, ranges in enumerate(profiles):
        if all(_takes(*ranges[name], shape) for name, shape in shapes.items() if name in ranges):
            return index
    return 0


def _takes(smallest: Shape, largest: Shape, shape: Shape) -> bool:
    return len(shape) == len(smallest) and all(
        low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
    )
