"""What every decoder's host loop does with keys and values: one step's cache goes to the next.

A cache has a capacity of slots: the size of an engine of its own where one was built and has room, else a power of
two that doubles when a row needs more. In between a step's cache goes into the next step as it came out, without a
copy; where TensorRT runs the step it never leaves the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.runtime.device.arrays import DeviceArray
from engines.runtime.fields import take_field

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

_SMALLEST_CACHE = 32  # slots
MOST_LAYERS = 10_000  # a manifest may say any number


def take_cache_names(config: Mapping[str, Any]) -> list[str]:
    """What a decoder's graphs call a step's keys and values, by `pipeline.num_layers`: `keys_0`, `values_0`, ..."""
    layers = range(take_field(config, "num_layers", int, most=MOST_LAYERS))
    return [f"{kind}_{layer}" for layer in layers for kind in ("keys", "values")]


def get_axis_range(graph: GraphSession, tensor: str, axis: int) -> tuple[int, int | None]:
    """Smallest and largest size of one axis of an input; None when nothing limits it."""
    size = next(t for t in graph.graph.inputs if t.name == tensor).shape[axis]
    if isinstance(size, int):
        return size, size
    low, _, high = graph.dims.get(size, (1, 1, None))
    return low, high


def choose_kept(names: Sequence[str], *takers: GraphSession) -> Sequence[str]:
    """`names` where every graph that takes these tensors reads them on the GPU, or none: what `run` should `keep`."""
    return names if all(taker.takes_device_arrays for taker in takers) else ()


def fit_cache(
    results: Mapping[str, Array], names: Sequence[str], step: GraphSession, *, slots: int, low: int, high: int
) -> dict[str, Array]:
    """A step's keys and values, `names` [B, K, S, D] of its results, as the next one's past: `past_<name>`.

    Args:
        step: the graph that takes them.
        slots: how many the next step needs.
        low, high: the capacities that its graph takes.
    """
    first = results[names[0]]
    capacity: int = first.shape[2]
    low = max(slots, low)
    built = [size for size in _list_built_sizes(step, f"past_{names[0]}", first.shape) if low <= size <= high]
    if built:
        capacity = min(built)
    elif not low <= capacity <= high:
        power = 1 << max(slots - 1, _SMALLEST_CACHE - 1).bit_length()
        capacity = max(low, min(power, high))
    return {f"past_{name}": _resize_cache(results[name], capacity) for name in names}


def _list_built_sizes(step: GraphSession, name: str, shape: Sequence[int]) -> list[int]:
    """Slots of the engines that were built for one size, of those that take a cache like this one otherwise."""
    if not step.fixed_sizes:
        return []
    listed = next(tensor for tensor in step.graph.inputs if tensor.name == name).shape
    found = []
    for sizes in step.fixed_sizes:
        batch, heads, slots, width = (sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in listed)
        if (batch, heads, width) == (shape[0], shape[1], shape[3]) and isinstance(slots, int):
            found.append(slots)
    return found


def _resize_cache(present_BKSD: Any, slots: int) -> Array:
    """The same tensor with `slots` slots, on the host; new ones are zero, cut ones are padding."""
    batch, heads, held, width = present_BKSD.shape
    if held == slots:
        same: Array = present_BKSD
        return same
    if isinstance(present_BKSD, DeviceArray):  # seldom: a cache doubles
        present_BKSD = present_BKSD.to_numpy()
    past = np.zeros((batch, heads, slots, width), present_BKSD.dtype)
    past[:, :, :held] = present_BKSD[:, :, :slots]
    return past
