"""Samples on which no range of int8 is measured, and what the user's file answers to them.

    --calibration, 8 feeds and more     every fourth feed is held out, up to 16
    made-up inputs                      8 more of them
                                        --> <graph>.held_out.npz: 0:input:<name>, 0:output:<name>, 1:input:..., and
                                            rounding:<target>:<output>, [largest, rms] of what rounding alone does

One sample does not show what int8 does to a model: a voice detector was right on 23 of 24 and lost the other. Not here:
what int8 may do to them (`engines.checking.held_out`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.onnx_models.read import Source
from exporters.onnx_models.reference import place_runnable
from exporters.onnx_models.rounding_noise import measure_rounding
from exporters.onnx_models.run_apart import RefusedError, running_apart
from exporters.onnx_models.samples import Feed
from exporters.passes import Range
from specs.targets import Target

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


def split_samples(samples: Sequence[Feed]) -> tuple[list[Feed], list[Feed]]:
    """(to calibrate with, held out)."""
    if len(samples) < _LEAST_SAMPLES:
        return list(samples), []
    every = max(_EVERY, -(-len(samples) // _MOST))
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
) -> None:
    """Write what `held` has beside how far rounding alone moves it and the `golden` sample, for every target."""
    arrays = {
        f"{index}:{kind}:{name}": array
        for index, pair in enumerate(zip(held.feeds, held.answers, strict=True))
        for kind, named in zip(("input", "output"), pair, strict=True)
        for name, array in named.items()
    }
    measured: dict[bool, dict[str, NDArray[np.float64]]] = {}
    for target in targets:
        by_rows = target.lowering == "onnxruntime"
        if by_rows not in measured:
            measured[by_rows] = dict(_measure(portable, ranges, held, golden, by_rows=by_rows))
        arrays |= {f"rounding:{target.name}:{name}": moved for name, moved in measured[by_rows].items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes `allow_pickle` for one of the arrays


def _measure(
    portable: Path, ranges: Mapping[str, Range], held: HeldOut, golden: tuple[Feed, Answers], *, by_rows: bool
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Output -> [largest, rms] of how far rounding moved it on all samples; missing where it could not be told."""
    feeds, answers = (golden[0], *held.feeds), (golden[1], *held.answers)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure_rounding(portable, ranges, feeds, answers, by_rows=by_rows, scratch=Path(scratch))
    for name in found[0] if found else ():
        if all(name in one for one in found):
            errors = np.concatenate([one[name] for one in found])
            if errors.size:
                yield name, np.array([np.abs(errors).max(), np.sqrt(np.mean(np.square(errors)))])
