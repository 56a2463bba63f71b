"""What an ONNX file itself answers, run as it is by ONNX Runtime without optimisation: the oracle of its bundle.

Inputs are made up until the model takes them: a file does not say that two of its dims must be equal, nor that a model
takes logarithms. Sizes first differ from each other, so that a swapped axis cannot hide.

    sizes     all different -> equal along one axis -> all equal
    values    floats in [-1, 1), integers 0 or 1 -> positive floats -> integers 1 (nothing masked)

A model that answers NaN, or another time something else, is no reference, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from exporters.read_model import Source
from exporters.samples import Draw, Feed, make_random_inputs
from exporters.trace import choose_sizes
from specs.bundle import IoTensor
from specs.errors import GraphError
from specs.schema import Dim

_NEAR = 3
_SEED = 0
_DRAWS = (Draw(), Draw(floats=(0.05, 1.0)), Draw(integers=(1, 2)), Draw(floats=(0.05, 1.0), integers=(1, 2)))
_SAME = 1e-3  # of the rms: two runs may add in another order, and no more
_RANDOM_OPS = (
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One feed and its answers, in the file's order of outputs; `sizes` and `draw` made the feed up."""

    feed: Feed
    outputs: dict[str, NDArray[Any]]
    sizes: Mapping[str, int]
    draw: Draw


@dataclass(frozen=True)
class _Refusal:
    """Why one feed gives no reference."""

    problem: str
    got: str


def find_reference(
    source: Source, inputs: Sequence[IoTensor], dims: Mapping[str, Dim], samples: Sequence[Feed]
) -> Reference:
    """Run the file on the first of `samples`, or on made-up inputs that it takes.

    Raises:
        GraphError: ONNX Runtime cannot load the file; it has outputs that are no tensors of numbers; it takes none of
            the inputs; its answers are not finite, or not the same when it is asked again.
    """
    session = _open(source)
    _require_tensors(source, session)
    first: tuple[_Refusal, Mapping[str, int]] | None = None
    real = [(samples[0], choose_sizes(dims, near=_NEAR), Draw())] if samples else []
    tried: Iterable[tuple[Feed, Mapping[str, int], Draw]] = real or _make_feeds(inputs, dims)
    for feed, sizes, draw in tried:
        found = _run(session, feed)
        if not isinstance(found, _Refusal):
            _require_repeatable(source, session, feed, found)
            return Reference(feed=feed, outputs=found, sizes=sizes, draw=draw)
        first = first or (found, sizes)
    assert first is not None
    raise _refuse(source, *first, calibrated=bool(samples))


def choose_similar_sizes(dims: Mapping[str, Dim], inputs: Sequence[IoTensor]) -> Iterator[dict[str, int]]:
    """Sizes to try, from all different to all equal."""
    yield choose_sizes(dims, near=_NEAR)
    axes = {
        size: axis for tensor in reversed(inputs) for axis, size in enumerate(tensor.shape) if isinstance(size, str)
    }
    for wanted in ({name: _NEAR + 5 * axes.get(name, 0) for name in dims}, dict.fromkeys(dims, 4)):
        yield {name: min(max(wanted[name], dim.min), dim.max) for name, dim in dims.items()}


def _make_feeds(inputs: Sequence[IoTensor], dims: Mapping[str, Dim]) -> Iterator[tuple[Feed, Mapping[str, int], Draw]]:
    seen: list[dict[str, int]] = []
    for sizes in choose_similar_sizes(dims, inputs):
        if sizes not in seen:
            seen.append(sizes)
            for draw in _DRAWS:
                yield make_random_inputs(inputs, sizes, draw, seed=_SEED), sizes, draw


def _open(source: Source) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = source.runnable if isinstance(source.runnable, bytes) else str(source.runnable)
    if isinstance(data, bytes):
        folder = str(source.path.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise GraphError(
            "ONNX Runtime cannot load this model, so there is no reference to compare engines with",
            where=str(source.path),
            got=_spell(error).split(f"{source.path} failed:")[-1],
            allowed="a model that ONNX Runtime runs on the CPU",
            fix="repair the model, or export it again with operators of standard ONNX",
        ) from None


def _require_tensors(source: Source, session: onnxruntime.InferenceSession) -> None:
    for output in session.get_outputs():
        if not output.type.startswith("tensor(") or output.type in ("tensor(string)", "tensor(bfloat16)"):
            raise GraphError(
                f"output '{output.name}' is not a tensor of numbers",
                where=str(source.path),
                got=output.type,
                allowed="tensors of numpy's integer, float and bool types",
                fix="cut the graph so that its outputs are plain tensors",
            )


def _run(session: onnxruntime.InferenceSession, feed: Feed) -> dict[str, NDArray[Any]] | _Refusal:
    try:
        results = session.run(None, feed)
    except _ORT_ERRORS as error:
        return _Refusal("the model does not run", _spell(error))
    outputs = {output.name: np.asarray(array) for output, array in zip(session.get_outputs(), results, strict=True)}
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            return _Refusal(f"the model itself answers NaN or infinity in '{name}'", f"{bad} of {array.size} elements")
    return outputs


def _require_repeatable(
    source: Source, session: onnxruntime.InferenceSession, feed: Feed, outputs: Mapping[str, NDArray[Any]]
) -> None:
    again = _run(session, feed)
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


def _refuse(source: Source, refusal: _Refusal, sizes: Mapping[str, int], *, calibrated: bool) -> GraphError:
    if calibrated:
        on = "on the first sample of the calibration data"
    else:
        spelled = ", ".join(f"{name} {size}" for name, size in sizes.items())
        on = f"on made-up inputs{f' with {spelled}' if spelled else ''}"
    dims = " ".join(f"--dim '{name}=MIN:OPT:MAX'" for name in sizes)
    return GraphError(
        f"{refusal.problem} {on}, so there is no reference to compare engines with",
        where=str(source.path),
        got=refusal.got,
        allowed="a model that answers with finite numbers for the shapes it declares",
        fix="correct the samples"
        if calibrated
        else f"give real inputs: --calibration FILE.npz{f', and sizes that it takes: {dims}' if dims else ''}",
    )


def _spell(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("[ONNXRuntimeError] : ")


def _list_ort_errors() -> Iterator[type[Exception]]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    for value in vars(state).values():
        if isinstance(value, type) and issubclass(value, Exception):
            yield value


_ORT_ERRORS: tuple[type[Exception], ...] = (*_list_ort_errors(), RuntimeError, ValueError)
