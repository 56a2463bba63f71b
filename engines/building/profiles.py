"""(inputs, ranges of the dynamic dims) -> optimisation profiles: the smallest, usual and largest shape of every input.

A profile is tuned for one size. ViT-B/16 on an H200 with TensorRT 8.6, tuned for batch 1 of 1..32, takes 5.5 ms for
32 images where an engine tuned for 32 takes 3.8: so where the largest sizes are far from the usual ones, an engine gets
two profiles, one up to the usual sizes and one for all, tuned for the largest. The runtime takes the first that fits.

A static input needs none. Every dynamic dimension must have a range: an engine is tuned for one size, and guessing it
would make a slow engine, or one that refuses its user's batch. An axis without a name is called `<input>.<axis>`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engines.backends.base import InputProfile
from engines.onnx_files.records import Value
from specs.bundle import IoTensor
from specs.errors import BuildError, name_nearest

Range = tuple[int, int, int]
Profile = tuple[InputProfile, ...]
#: From this ratio of the largest input to the usual one on, a second profile is worth its time to build.
_FAR = 8


def make_profiles(
    inputs: Sequence[IoTensor | Value], dims: Mapping[str, Range], *, where: str
) -> tuple[InputProfile, ...]:
    """Profiles of the dynamic inputs, in the graph's order.

    Raises:
        BuildError: a dynamic dimension has no range, a range is not 1 <= min <= opt <= max, or the rank is unknown.
    """
    for name, bounds in dims.items():
        if not 1 <= bounds[0] <= bounds[1] <= bounds[2]:
            raise BuildError(
                f"the range of dim '{name}' is not 1 <= min <= opt <= max",
                where=where,
                got=", ".join(map(str, bounds)),
                fix=f"write it as min, opt, max: {name}=1,8,32",
            )
    profiles = []
    for tensor in inputs:
        ranges = [_find_range(tensor, axis, size, dims, where) for axis, size in enumerate(_read_shape(tensor, where))]
        if any(isinstance(size, (str, type(None))) for size in tensor.shape or ()):
            smallest, usual, largest = (tuple(r[i] for r in ranges) for i in range(3))
            profiles.append(InputProfile(name=tensor.name, minimum=smallest, optimum=usual, maximum=largest))
    return tuple(profiles)


def split_profile(profile: Profile) -> tuple[Profile, Profile]:
    """(up to the usual sizes, all sizes and tuned for the largest); the second is empty where they are near."""
    if max((math.prod(one.maximum) / math.prod(one.optimum) for one in profile), default=1) < _FAR:
        return profile, ()
    near = tuple(replace(one, maximum=one.optimum) for one in profile)
    return near, tuple(replace(one, optimum=one.maximum) for one in profile)


def describe_profiles(profile: Profile, wide: Profile) -> tuple[str, ...]:
    """The note of a build with two profiles."""
    if not wide:
        return ()
    name, usual, large = profile[0].name, list(profile[0].optimum), list(wide[0].optimum)
    return (f"two profiles: tuned for '{name}' of {usual}, and for larger ones at {large}",)


def list_dynamic_dims(inputs: Sequence[IoTensor | Value]) -> tuple[str, ...]:
    """The names of the dims that need a range, each once, in the order they appear."""
    names = [
        _name_axis(tensor, axis, size)
        for tensor in inputs
        for axis, size in enumerate(tensor.shape or ())
        if not isinstance(size, int)
    ]
    return tuple(dict.fromkeys(names))


def _read_shape(tensor: IoTensor | Value, where: str) -> tuple[int | str | None, ...]:
    if tensor.shape is None:
        raise BuildError(
            f"the graph does not say how many dimensions its input '{tensor.name}' has",
            where=where,
            fix="export it again with a shape for every input",
        )
    return tensor.shape


def _name_axis(tensor: IoTensor | Value, axis: int, size: int | str | None) -> str:
    return size if isinstance(size, str) else f"{tensor.name}.{axis}"


def _find_range(
    tensor: IoTensor | Value, axis: int, size: int | str | None, dims: Mapping[str, Range], where: str
) -> Range:
    if isinstance(size, int):
        return (size, size, size)
    name = _name_axis(tensor, axis, size)
    if name not in dims:
        raise BuildError(
            f"the graph has a dynamic dimension without a range: '{name}'",
            where=f"{where}: input '{tensor.name}', axis {axis}",
            allowed=f"ranges were given for: {name_nearest(name, dims)}",
            fix=f"give its smallest, usual and largest size: --dim {name}=1,8,32",
        )
    return dims[name]
