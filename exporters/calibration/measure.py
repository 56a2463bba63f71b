"""The range of every tensor that INT8 quantises, measured by running the float32 graph on calibration inputs.

    samples --ONNX Runtime, the tensors made outputs--> arrays --collector--> Range(low, high)

"max" keeps the extremes. "mse" takes the range that loses least (`least_squares`). "percentile" and "entropy" use
ONNX Runtime's own histogram collectors: they give up outliers (99.99 % kept; the cut with the least Kullback-Leibler
divergence). Only the tensors asked for are read, and a model with external data is run where it lies, so its size does
not matter. Beside the range, a few rows of each tensor are kept: on them the passes try what loses least
(`passes.int8.scaling`).

Not here: which tensors (`passes.list_quantizable_tensors`), nor scales (`passes.insert_quantize_dequantize`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx

from exporters.calibration.least_squares import LeastSquares
from exporters.passes.int8.ranges import Range
from specs.errors import CalibrationError
from specs.progress import Progress
from specs.system.mapped_session import has_large_weights, make_mapped_session

if TYPE_CHECKING:
    import onnxruntime  # at run time only where INT8 is asked for: an fp32 export need not carry it in memory

Method = Literal["max", "mse", "percentile", "entropy"]

#: Histogram bins; entropy merges them into 128 steps, so it needs many more to have a choice.
_BINS = 2048
_PERCENTILE = 99.99
#: Rows kept of each tensor: 5 MB where a row has 16384 channels.
_DRAWN_ROWS, _LOUDEST_ROWS = 64, 16


def measure_ranges(
    model_path: Path,
    tensors: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    method: Method = "max",
    progress: Progress | None = None,
) -> dict[str, Range]:
    """Run every sample and return the range of each tensor.

    Args:
        model_path: a float32 graph that ONNX Runtime takes.
        tensors: names of values of the main graph; float tensors.
        samples: one dict of inputs a sample.

    Raises:
        CalibrationError: no samples, a sample the graph does not take, values that are not finite, an unknown tensor.
    """
    if method not in ("max", "mse", "percentile", "entropy"):
        raise CalibrationError(
            f"unknown method '{method}'",
            allowed="entropy, max, mse, percentile",
            fix="choose one of these",
        )
    if not tensors:
        return {}
    inputs = [name for name in tensors if name in _list_inputs(model_path)]
    computed = [name for name in tensors if name not in inputs]
    session = _open_session(model_path, computed)
    collector = _make_collector(method)
    rows = _Rows()
    count = 0
    for sample in samples:
        arrays = _run(session, sample, computed, inputs, count)
        collector.add(arrays)
        rows.add(arrays)
        count += 1
        if progress is not None:
            progress(f"calibrating: {count} samples", None)
    if count == 0:
        raise CalibrationError(
            "there are no calibration samples", where=str(model_path), fix="give at least one; 64 to 512 are usual"
        )
    return {name: rows.complete(name, span) for name, span in collector.finish().items()}


def _make_collector(method: Method) -> _Extremes | LeastSquares | _Histograms:
    if method == "max":
        return _Extremes()
    return LeastSquares() if method == "mse" else _Histograms(method)


def _list_inputs(model_path: Path) -> set[str]:
    return {value.name for value in onnx.load(str(model_path), load_external_data=False).graph.input}


def _open_session(model_path: Path, computed: Sequence[str]) -> onnxruntime.InferenceSession:
    """The model with `computed` as further outputs; its weights are read from where they lie."""
    import onnxruntime

    proto = onnx.load(str(model_path), load_external_data=False)
    known = {name for node in proto.graph.node for name in node.output}
    outputs = {value.name for value in proto.graph.output}
    for name in computed:
        if name not in known:
            raise CalibrationError(
                f"the graph has no tensor '{name}'",
                where=str(model_path),
                fix="name values that the graph computes",
            )
        if name not in outputs:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model_path.parent))
    model, providers = proto.SerializeToString(), ["CPUExecutionProvider"]
    if has_large_weights(model_path):
        return make_mapped_session(model_path, options, providers=providers, model_bytes=model)
    return onnxruntime.InferenceSession(model, options, providers=providers)


def _run(
    session: onnxruntime.InferenceSession,
    sample: Mapping[str, np.ndarray],
    computed: Sequence[str],
    inputs: Sequence[str],
    index: int,
) -> dict[str, np.ndarray]:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    wanted = {value.name for value in session.get_inputs()}
    if set(sample) != wanted:
        raise CalibrationError(
            f"calibration sample {index} does not match the graph's inputs",
            got=", ".join(sorted(sample)) or "nothing",
            allowed=", ".join(sorted(wanted)),
            fix="name the arrays of the calibration file after the inputs",
        )
    try:
        results = session.run(list(computed), dict(sample)) if computed else []
    except (ValueError, RuntimeError, InvalidArgument) as error:
        raise CalibrationError(
            f"the graph does not take calibration sample {index}",
            got=str(error).strip().splitlines()[0],
            fix="check the shapes and types of the calibration data",
        ) from None
    arrays = dict(zip(computed, results, strict=True)) | {name: np.asarray(sample[name]) for name in inputs}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CalibrationError(
                f"'{name}' is not finite on calibration sample {index}",
                fix="check the calibration data and the weights",
            )
    return {name: array for name, array in arrays.items() if array.size}


class _Extremes:
    """The lowest and highest value seen."""

    def __init__(self) -> None:
        self.ranges: dict[str, Range] = {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            low, high = float(array.min()), float(array.max())
            old = self.ranges.get(name, Range(low, high))
            self.ranges[name] = Range(min(low, old.low), max(high, old.high))

    def finish(self) -> dict[str, Range]:
        return self.ranges


class _Histograms:
    """ONNX Runtime's collector: symmetric histograms that grow with the data."""

    def __init__(self, method: str) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector

        self.collector = HistogramCollector(
            method=method,
            symmetric=True,
            num_bins=_BINS,
            num_quantized_bins=128,
            percentile=_PERCENTILE,
            scenario="same",
        )

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the collector prints
            self.collector.collect({name: [array] for name, array in arrays.items()})

    def finish(self) -> dict[str, Range]:
        with contextlib.redirect_stdout(io.StringIO()):
            result = self.collector.compute_collection_result()
        return {name: Range(float(edges[0]), float(edges[1])) for name, edges in result.items()}


class _Rows:
    """A few rows of every tensor: some drawn evenly from all that were seen, and the loudest, which are rare."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.seen: dict[str, int] = {}
        self.drawn: dict[str, _Best] = {}
        self.loudest: dict[str, _Best] = {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if array.ndim < 2:
                continue
            rows = array.reshape(-1, array.shape[-1])
            self.seen[name] = self.seen.get(name, 0) + len(rows)
            self.drawn.setdefault(name, _Best(_DRAWN_ROWS)).add(self.random.random(len(rows)), rows)
            self.loudest.setdefault(name, _Best(_LOUDEST_ROWS)).add(np.abs(rows).max(axis=1), rows)

    def complete(self, name: str, span: Range) -> Range:
        if name not in self.seen:
            return span
        rows = np.concatenate([self.drawn[name].rows, self.loudest[name].rows])
        return replace(span, rows=rows, seen=self.seen[name])


class _Best:
    """The `count` rows of the largest scores; of rows of several lengths, those of the last one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.scores, self.rows = np.empty(0), np.empty((0, 0), np.float32)

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        best = np.argsort(-scores)[: self.count]  # before they are copied: there may be very many
        scores, rows = scores[best], rows[best].astype(np.float32)
        if rows.shape[1] == self.rows.shape[1]:
            scores, rows = np.concatenate([self.scores, scores]), np.concatenate([self.rows, rows])
        best = np.argsort(-scores)[: self.count]
        self.scores, self.rows = scores[best], rows[best]
