"""How far rounding, and nothing else, moves what a float32 graph answers: the noise floor of a lower precision.

    portable graph --the noise of rounding (`int8_noise`, `half_noise`)--> noisy graph --ONNX Runtime--> answers
                     three times, each time drawn anew                     less the original's: what rounding explains

The graph is the portable one and computes in float32, so that no rewrite of a typed graph has a part in it. What is
much further from the truth than this was not rounded but broken.

Not here: what the distance means (`engines.checking.held_out`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx_models.run_apart import RefusedError, running_apart
from exporters.onnx_models.samples import Feed

_SEEDS = (1, 2, 3)
#: A model with more weights is not copied to learn this.
_LARGEST_BYTES = 1 << 28
_NUMBERS = "fiub"  # numpy's kinds of floats, integers and bools


def measure_rounding(
    portable: Path,
    add_noise: Callable[[ir.Model, int], ir.Model | None],
    feeds: Sequence[Feed],
    answers: Sequence[Mapping[str, NDArray[Any]]],
    *,
    scratch: Path,
) -> list[dict[str, NDArray[np.float64]]]:
    """For every feed: output -> how far rounding moved each of its elements, in its units, in all draws.

    Args:
        portable: the float32 graph; its `answers` to `feeds` are known.
        add_noise: makes a copy of it with noise in place of rounding, by a seed; None where nothing is rounded.
        scratch: an empty folder.

    Returns: [] where nothing is rounded, or it cannot be told (too large a model, other shapes, no finite answer).
    """
    model = ir.load(portable)
    if sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value) > _LARGEST_BYTES:
        return []
    found: list[dict[str, list[NDArray[np.float64]]]] = [
        {name: [] for name, array in answer.items() if array.dtype.kind in _NUMBERS} for answer in answers
    ]
    place = scratch / "rounded.onnx"
    for seed in _SEEDS:
        noisy_model = add_noise(model, seed)
        if noisy_model is None:
            return []
        ir.save(noisy_model, place)
        try:
            with running_apart(place, scratch, data_folder=portable.parent) as noisy:
                for feed, answer, errors in zip(feeds, answers, found, strict=True):
                    _add_errors(errors, noisy.run(feed), answer)
        except RefusedError:
            return []
        finally:
            place.unlink()
    return [{name: np.concatenate(drawn) for name, drawn in errors.items()} for errors in found]


def _add_errors(
    errors: dict[str, list[NDArray[np.float64]]],
    moved: Mapping[str, NDArray[Any]],
    answer: Mapping[str, NDArray[Any]],
) -> None:
    """Of one draw; an output that it makes unusable is forgotten."""
    for name in list(errors):
        if moved[name].shape != answer[name].shape or not np.isfinite(moved[name]).all():
            del errors[name]
        else:
            errors[name].append((moved[name].astype(np.float64) - answer[name]).reshape(-1))
