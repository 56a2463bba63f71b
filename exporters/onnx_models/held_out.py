"""Samples on which no range of int8 is measured, and what the user's file answers to them.

    --calibration, for int8     of 8 feeds and more every fourth is held out, up to 16
    --calibration, for halves   all of them, which calibrate nothing; of more than 16 as many, evenly spread
    made-up inputs              8 more of them
                                --> <graph>.held_out.npz: 0:input:<name>, 0:output:<name>, 1:input:..., and
                                    rounding:<target>-<precision>:<output>, [largest, rms] of what rounding alone does

One sample does not show what a lower precision does to a model: in int8 a voice detector was right on 23 of 24 and lost
the other; in fp16 a text reader was refused for one element of 265000. Not here: what it may do to them
(`engines.checking.held_out`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx_models.half_noise import add_half_noise
from exporters.onnx_models.int8_noise import add_int8_noise
from exporters.onnx_models.read import Source
from exporters.onnx_models.reference import place_runnable
from exporters.onnx_models.rounding_noise import measure_rounding
from exporters.onnx_models.run_apart import RefusedError, running_apart
from exporters.onnx_models.samples import Feed
from exporters.passes import Range
from specs.schema import Precision
from specs.targets import Target

#: What is judged on them.
HALVES = ("fp16", "bf16")
#: Fewer samples than this all calibrate.
_LEAST_SAMPLES = 8
_EVERY = 4
_MOST = 16
#: Of all inputs and outputs that are kept together.
_MOST_BYTES = 1 << 26

Answers = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Feeds and the file's answers to them, none where there are none to hold out."""

    feeds: tuple[Feed, ...] = ()
    answers: tuple[Answers, ...] = ()


def split_samples(samples: Sequence[Feed], *, calibrating: bool = True) -> tuple[list[Feed], list[Feed]]:
    """(to calibrate with, held out)."""
    if calibrating and len(samples) < _LEAST_SAMPLES:
        return list(samples), []
    every = max(_EVERY if calibrating else 1, -(-len(samples) // _MOST))
    held = range(0, len(samples), every)
    return [sample for index, sample in enumerate(samples) if index not in held], [samples[index] for index in held]


def answer_held_out(source: Source, feeds: Sequence[Feed]) -> HeldOut:
    """Ask the file itself; feeds that it does not take or answers with NaN are left out, and what is too much."""
    kept: list[tuple[Feed, Answers]] = []
    size = 0
    if not feeds:
        return HeldOut()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with running_apart(place_runnable(source, folder), folder, data_folder=source.path.parent) as model:
            for feed in feeds:
                try:
                    answers = model.run(feed)
                except RefusedError:
                    continue
                size += sum(array.nbytes for array in (*feed.values(), *answers.values()))
                if size > _MOST_BYTES:
                    break
                if all(np.isfinite(array).all() for array in answers.values() if array.dtype.kind == "f"):
                    kept.append((feed, answers))
    return HeldOut(feeds=tuple(feed for feed, _ in kept), answers=tuple(answers for _, answers in kept))


def write_held_out(
    path: Path,
    held: HeldOut,
    golden: tuple[Feed, Answers],
    portable: Path,
    ranges: Mapping[str, Range],
    targets: Collection[Target],
    precisions: Collection[Precision],
) -> None:
    """Write what `held` has beside how far rounding alone moves it and the `golden` sample.

    Args:
        portable: the float32 graph.
        ranges: of the tensors that int8 rounds; empty where it does not, and then it moves nothing.
        precisions: those that round, for every one of `targets`.
    """
    arrays = {
        f"{index}:{kind}:{name}": array
        for index, pair in enumerate(zip(held.feeds, held.answers, strict=True))
        for kind, named in zip(("input", "output"), pair, strict=True)
        for name, array in named.items()
    }
    measured: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
    for target, precision in product(targets, precisions):
        by_rows = target.lowering == "onnxruntime"
        add_noise: Callable[[ir.Model, int], ir.Model | None]
        key: tuple[str, str] = target.lowering, precision
        if precision == "int8":
            key = str(by_rows), precision
            add_noise = partial(add_int8_noise, ranges=ranges, by_rows=by_rows)
        else:
            add_noise = partial(add_half_noise, lowering=target.lowering, precision=precision)
        if key not in measured:
            measured[key] = dict(_measure(portable, add_noise, held, golden))
        arrays |= {f"rounding:{target.name}-{precision}:{name}": moved for name, moved in measured[key].items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes `allow_pickle` for one of the arrays


def _measure(
    portable: Path,
    add_noise: Callable[[ir.Model, int], ir.Model | None],
    held: HeldOut,
    golden: tuple[Feed, Answers],
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Output -> [largest, rms] of how far rounding moved it on all samples; missing where it could not be told."""
    feeds, answers = (golden[0], *held.feeds), (golden[1], *held.answers)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure_rounding(portable, add_noise, feeds, answers, scratch=Path(scratch))
    for name in found[0] if found else ():
        if all(name in one for one in found):
            errors = np.concatenate([one[name] for one in found])
            if errors.size and np.isfinite(errors).all():
                yield name, np.array([np.abs(errors).max(), np.sqrt(np.mean(np.square(errors)))])
