"""What an ONNX file itself answers, run as it is by ONNX Runtime without optimisation: the oracle of its bundle.

Inputs are made up until the model takes them (`made_up_inputs`), or are the user's samples.

The answer is also asked for with the last places of weights and input moved (`run_apart`): that is the noise floor of
the comparison, beside |fp32 - fp64| of the same order (0.5 to 1.3 of it on four published models). Of several feeds the
first that is sharp enough to show an error is taken, else the sharpest.

A model that answers NaN, or another time something else, is no reference, and is refused. Where it takes no small
sizes, the refusal names larger ones that it takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.onnx_models.made_up_inputs import NEAR, make_feeds, propose_sizes
from exporters.onnx_models.read import Source
from exporters.onnx_models.run_apart import RefusedError, RunApart, running_apart
from exporters.onnx_models.samples import Draw, Feed
from exporters.trace import choose_sizes
from specs.bundle import IoTensor
from specs.errors import GraphError
from specs.schema import Dim
from specs.tolerance import TOLERANCES

_SAME = 1e-3  # of the rms: two runs may add in another order, and no more
_RANDOM_OPS = (
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip
#: Feeds that are asked for their noise before the sharpest is taken.
_FEEDS = 4
_MOVES = (1, 2)  # seeds
#: Of the rms: eight units in the last place. Moved weights do not show what is rounded between them.
_LEAST_NOISE = 2.0**-20
#: A model with more weights is not copied three times to learn its noise.
_LARGEST_MOVED_BYTES = 1 << 28
_TOO_LARGE = "the model with moved weights is not run where these are more than 256 MiB"
_NOT_MOVED = "with its weights moved by their last place the model does not answer in the same shapes"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One feed and its answers, in the file's order of outputs; `sizes` and `draw` made the feed up."""

    feed: Feed
    outputs: dict[str, NDArray[Any]]
    sizes: Mapping[str, int]
    draw: Draw
    noise_floor: Mapping[str, float]  # of the float outputs, in their units
    no_noise_floor: str  # why that was not measured, else ""


@dataclass(frozen=True)
class _Refusal:
    """Why one feed gives no reference."""

    problem: str
    got: str


def find_reference(
    source: Source,
    inputs: Sequence[IoTensor],
    dims: Mapping[str, Dim],
    samples: Sequence[Feed],
    *,
    chosen: Collection[str] = (),
) -> Reference:
    """Run the file on some of `samples`, or on made-up inputs that it takes.

    Args:
        chosen: the dims whose range is the user's own: no others are proposed for them.

    Raises:
        GraphError: ONNX Runtime cannot load the file; it has outputs that are no tensors of numbers; it takes none of
            the inputs; its answers are not finite, or not the same when it is asked again.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            with running_apart(place_runnable(source, folder), folder, data_folder=source.path.parent) as model:
                return _find(source, model, inputs, dims, samples, chosen)
        except RefusedError as error:
            raise _refuse_file(source, str(error)) from None


def place_runnable(source: Source, scratch: Path) -> Path:
    """The file to run: the user's own, or its repaired bytes in a file of ours."""
    if not isinstance(source.runnable, bytes):
        return source.runnable
    place = scratch / "repaired.onnx"
    place.write_bytes(source.runnable)
    return place


def _find(
    source: Source,
    model: RunApart,
    inputs: Sequence[IoTensor],
    dims: Mapping[str, Dim],
    samples: Sequence[Feed],
    chosen: Collection[str],
) -> Reference:
    _require_tensors(source, model)
    graph = source.model.graph
    sizes_of_samples = choose_sizes(dims, near=NEAR)
    real = ((sample, sizes_of_samples, Draw()) for sample in samples[:_FEEDS])
    movable = sum(tensor.nbytes for tensor in _list_weights(source)) <= _LARGEST_MOVED_BYTES
    first: tuple[_Refusal, Mapping[str, int]] | None = None
    found: list[tuple[float, Reference]] = []
    for feed, sizes, draw in real if samples else make_feeds(graph, inputs, dims):
        outputs = _run(model, feed)
        if isinstance(outputs, _Refusal):
            first = first or (outputs, sizes)
            if samples:
                break
            continue
        if not found:
            _require_repeatable(source, model, feed, outputs)
        floor = _measure_floor(model, feed, outputs) if movable else {}
        why = "" if floor or not _is_float(outputs) else _NOT_MOVED if movable else _TOO_LARGE
        reference = Reference(feed=feed, outputs=outputs, sizes=sizes, draw=draw, noise_floor=floor, no_noise_floor=why)
        found.append((_measure_blur(floor, outputs), reference))
        if found[-1][0] <= 1 or len(found) == _FEEDS:
            break
    if not found:
        assert first is not None
        advice = ""
        if not samples:
            runs = partial(_takes, model)
            advice = propose_sizes(graph, inputs, dims, chosen=chosen, runs=runs)
        raise _refuse(source, *first, calibrated=bool(samples), advice=advice)
    return min(found, key=lambda one: one[0])[1]


def _list_weights(source: Source) -> Iterator[Any]:
    for value in source.model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value


def _require_tensors(source: Source, model: RunApart) -> None:
    for name, kind in model.outputs.items():
        if not kind.startswith("tensor(") or kind in ("tensor(string)", "tensor(bfloat16)"):
            raise GraphError(
                f"output '{name}' is not a tensor of numbers",
                where=str(source.path),
                got=kind,
                allowed="tensors of numpy's integer, float and bool types",
                fix="cut the graph so that its outputs are plain tensors",
            )


def _run(model: RunApart, feed: Feed) -> dict[str, NDArray[Any]] | _Refusal:
    try:
        outputs = model.run(feed)
    except RefusedError as error:
        return _Refusal("the model does not run", str(error))
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            return _Refusal(f"the model itself answers NaN or infinity in '{name}'", f"{bad} of {array.size} elements")
    return outputs


def _takes(model: RunApart, feed: Feed) -> bool:
    return not isinstance(_run(model, feed), _Refusal)


def _measure_floor(model: RunApart, feed: Feed, outputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Output -> how far moved last places move it; {} where that changes its shape or makes it unusable."""
    floor = {name: _LEAST_NOISE * _measure_rms(array) for name, array in outputs.items() if array.dtype == np.float32}
    for seed in _MOVES:
        try:
            moved = model.run(feed, seed=seed)
        except RefusedError:
            return {}
        for name, before in floor.items():
            if moved[name].shape != outputs[name].shape:
                return {}
            if moved[name].size:
                difference = np.abs(moved[name].astype(np.float64) - outputs[name]).max()
                floor[name] = max(before, float(difference))
    return floor if all(np.isfinite(list(floor.values()))) else {}


def _measure_blur(floor: Mapping[str, float], outputs: Mapping[str, NDArray[Any]]) -> float:
    """The limit that the noise asks for over the loosest one there is: up to 1 the feed can show an error."""
    row, worst = TOLERANCES["fp32"], 0.0
    assert row.floor_factor is not None
    for name, noise in floor.items():
        if rms := _measure_rms(outputs[name]):
            worst = max(worst, row.floor_factor * noise / rms / row.most)
    return worst


def _is_float(outputs: Mapping[str, NDArray[Any]]) -> bool:
    return any(array.dtype == np.float32 for array in outputs.values())


def _measure_rms(array: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(array.astype(np.float64))))) if array.size else 0.0


def _require_repeatable(source: Source, model: RunApart, feed: Feed, outputs: Mapping[str, NDArray[Any]]) -> None:
    again = _run(model, feed)
    changed = [name for name in outputs if isinstance(again, _Refusal) or not _is_same(outputs[name], again[name])]
    if changed:
        drawing = [
            node.name or node.outputs[0].name for node in source.model.graph.all_nodes() if node.op_type in _RANDOM_OPS
        ]
        raise GraphError(
            f"the model answers something else every time in '{changed[0]}', so nothing can be compared with it",
            where=f"{source.path}" + (f": {', '.join(map(str, drawing[:5]))}" if drawing else ""),
            got="random numbers, or dropout in training mode" if drawing else "two runs on one input that differ",
            allowed="a model in inference mode",
            fix="export it in evaluation mode, and make noise an input",
        )


def _is_same(before: NDArray[Any], after: NDArray[Any]) -> bool:
    if before.shape != after.shape:
        return False
    if before.dtype.kind != "f" or not before.size:
        return bool(np.array_equal(before, after))
    wide = before.astype(np.float64)
    return bool(np.abs(wide - after).max() <= _SAME * np.sqrt(np.mean(np.square(wide))))


def _refuse(
    source: Source, refusal: _Refusal, sizes: Mapping[str, int], *, calibrated: bool, advice: str
) -> GraphError:
    if calibrated:
        on = "on the first sample of the calibration data"
    else:
        spelled = ", ".join(f"{name} {size}" for name, size in sizes.items())
        on = f"on made-up inputs{f' with {spelled}' if spelled else ''}"
    dims = " ".join(f"--dim '{name}=MIN:OPT:MAX'" for name in sizes)
    if calibrated:
        fix = "correct the samples"
    elif advice:
        fix = f"say what sizes it takes; it runs, for one, with {advice}; real inputs: --calibration FILE.npz"
    else:
        fix = f"give real inputs: --calibration FILE.npz{f', and sizes that it takes: {dims}' if dims else ''}"
    return GraphError(
        f"{refusal.problem} {on}, so there is no reference to compare engines with",
        where=str(source.path),
        got=refusal.got,
        allowed="a model that answers with finite numbers for the shapes it declares",
        fix=fix,
    )


def _refuse_file(source: Source, got: str) -> GraphError:
    return GraphError(
        "ONNX Runtime cannot load this model, so there is no reference to compare engines with",
        where=str(source.path),
        got=got,
        allowed="a model that ONNX Runtime runs on the CPU",
        fix="repair the model, or export it again with operators of standard ONNX",
    )
