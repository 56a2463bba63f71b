"""Any ONNX file -> the contents of a bundle. The file itself, run by ONNX Runtime without optimisation, is the oracle.

model.onnx --read--> name its dynamic dims --> <model>/model.onnx + golden data --> the same typed graphs as a spec
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from exporters.export import Variant, finish_bundle, list_versions, write_typed_graphs
from exporters.golden import write_golden
from exporters.read_model import read_model
from exporters.trace import choose_sizes
from exporters.weights import WeightPool
from specs.bundle import Graph, IoTensor, Manifest, digest_file
from specs.errors import CalibrationError, GraphError, SpecError, name_nearest
from specs.handlers.data import load_arrays, take_batch
from specs.schema import Dim, Precision, TensorSpec
from specs.targets import Target

Progress = Callable[[str, "float | None"], None]

COMPONENT = "model"
#: What a dynamic dim may be when the user did not say.
DEFAULT_DIM = Dim(min=1, opt=1, max=16)
_GOLDEN_NEAR = 3
_RANDOM_SAMPLES = 16
_SEED = 0


def export_model(
    source: Path,
    folder: Path,
    *,
    targets: Sequence[Target],
    precisions: Sequence[Precision],
    calibration: Path | None,
    dims: Mapping[str, Dim],
    progress: Progress,
) -> Manifest:
    """Write a bundle for an ONNX file into the empty `folder`.

    Args:
        calibration: a .npz with one array per input, samples along the first axis; also feeds the golden data.
        dims: ranges of the file's dynamic dims by name; those not named get DEFAULT_DIM. A dim without a name is
            called `<input>_<axis>`.

    Raises:
        GraphError: the file cannot be read or run, or has an input that cannot be made up (strings, sequences).
        CalibrationError: the calibration data does not fit the inputs.
    """
    progress(f"reading {source.name}", None)
    model = read_model(source)
    name_dynamic_dims(model)
    ranges = _choose_dims(model, dims, source)
    inputs = tuple(_describe(value, source) for value in model.graph.inputs)
    (folder / COMPONENT).mkdir()
    pool = WeightPool(folder / COMPONENT)
    pool.store(model)
    portable = folder / COMPONENT / "model.onnx"
    ir.save(model, portable)

    progress("golden data from ONNX Runtime", None)
    samples = _read_samples(calibration, inputs, ranges) if calibration else None
    sizes = choose_sizes(ranges, near=_GOLDEN_NEAR)
    feed = next(iter(samples)) if samples else make_random_inputs(inputs, sizes, seed=_SEED)
    outputs = _run_reference(portable, feed, source)
    write_golden(folder / COMPONENT / "model.golden.npz", feed, outputs)

    typed = write_typed_graphs(
        portable,
        [Variant(target=target, precision=precision) for target in targets for precision in precisions],
        pool,
        samples=lambda: (
            samples or [make_random_inputs(inputs, sizes, seed=_SEED + 1 + index) for index in range(_RANDOM_SAMPLES)]
        ),
        calibration_method="max",
        progress=progress,
    )
    graph = Graph(
        name=COMPONENT,
        component=COMPONENT,
        file=f"{COMPONENT}/model.onnx",
        golden=f"{COMPONENT}/model.golden.npz",
        inputs=inputs,
        outputs=tuple(
            IoTensor(name=name, dtype=array.dtype.name, shape=_output_shape(value, array))
            for (name, array), value in zip(outputs.items(), model.graph.outputs, strict=True)
        ),
        typed=typed,
    )
    manifest = Manifest(
        name=re.sub(r"[^A-Za-z0-9_.-]", "_", source.stem) or COMPONENT,
        spec_digest=digest_file(source),
        created_by=list_versions(),
        dims={name: (dim.min, dim.opt, dim.max) for name, dim in ranges.items()},
        pipeline={"kind": "tensors", "graph": COMPONENT},
        graphs=(graph,),
    )
    return finish_bundle(folder, manifest, components={COMPONENT: pool})


def name_dynamic_dims(model: ir.Model) -> None:
    """Give every unnamed dynamic dim of an input a name, so that ranges can refer to it."""
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                f"{value.name}_{axis}" if isinstance(size, ir.SymbolicDim) and not size.value else size
                for axis, size in enumerate(value.shape)
            ]
        )


def make_random_inputs(inputs: Sequence[IoTensor], sizes: Mapping[str, int], *, seed: int) -> dict[str, np.ndarray]:
    """Seeded values: floats in [-1, 1), integers 0 or 1 (legal as ids, masks, lengths and indices alike)."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for tensor in inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        floating = np.dtype(tensor.dtype).kind == "f"
        drawn = rng.uniform(-1, 1, shape) if floating else rng.integers(0, 2, shape)
        arrays[tensor.name] = np.asarray(drawn).astype(tensor.dtype)
    return arrays


def _choose_dims(model: ir.Model, given: Mapping[str, Dim], source: Path) -> dict[str, Dim]:
    names = [
        size.value
        for value in model.graph.inputs
        for size in value.shape or ()
        if isinstance(size, ir.SymbolicDim) and size.value
    ]
    for name in given:
        if name not in names:
            raise SpecError(
                f"the model has no dynamic dim '{name}'",
                where=str(source),
                allowed=name_nearest(name, set(names)),
                fix="name one of these in --dim",
            )
    return {name: given.get(name, DEFAULT_DIM) for name in names}


def _describe(value: ir.Value, source: Path) -> IoTensor:
    dtype, shape = value.dtype, value.shape
    try:
        if dtype is None or shape is None or dtype == ir.DataType.STRING:
            raise TypeError
        numpy_name = np.dtype(dtype.numpy()).name
        np.dtype(numpy_name)  # bfloat16 and the 8- and 4-bit types exist only in ml_dtypes
    except TypeError:
        raise GraphError(
            f"input '{value.name}' cannot be fed with arrays",
            where=str(source),
            got=f"type {value.type}, shape {shape}",
            allowed="a tensor of a numpy type with a known rank",
            fix="cut the graph so that its inputs are plain tensors",
        ) from None
    sizes = tuple(size.value or "" if isinstance(size, ir.SymbolicDim) else int(size) for size in shape)
    return IoTensor(name=value.name or "", dtype=numpy_name, shape=sizes)


def _output_shape(value: ir.Value, array: np.ndarray) -> tuple[int | str, ...]:
    """The declared shape where there is one; dims it leaves open are called `<output>_<axis>`."""
    if value.shape is None or len(value.shape) != array.ndim:
        return tuple(f"{value.name}_{axis}" for axis in range(array.ndim))
    return tuple(
        (size.value or f"{value.name}_{axis}") if isinstance(size, ir.SymbolicDim) else int(size)
        for axis, size in enumerate(value.shape)
    )


def _run_reference(model: Path, feed: Mapping[str, np.ndarray], source: Path) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        results = session.run(None, dict(feed))
    except (*_ORT_ERRORS,) as error:
        raise GraphError(
            "ONNX Runtime cannot run this model, so there is no reference to compare engines with",
            where=str(source),
            got=str(error).strip().splitlines()[0],
            allowed="a model that runs on inputs of its declared shapes",
            fix="give realistic inputs with --calibration, ranges with --dim, or repair the model",
        ) from None
    names = [output.name for output in session.get_outputs()]
    outputs = {name: np.asarray(result) for name, result in zip(names, results, strict=True)}
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, np.ndarray) or result.dtype.kind not in "fiub":
            raise GraphError(
                f"output '{name}' is not a numeric tensor",
                where=str(source),
                got=type(result).__name__,
                fix="cut the graph so that its outputs are plain tensors",
            )
    return outputs


def _list_ort_errors() -> Iterator[type[Exception]]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    for value in vars(state).values():
        if isinstance(value, type) and issubclass(value, Exception):
            yield value


_ORT_ERRORS: tuple[type[Exception], ...] = (*_list_ort_errors(), RuntimeError, ValueError)


def _read_samples(path: Path, inputs: Sequence[IoTensor], dims: Mapping[str, Dim]) -> list[dict[str, np.ndarray]]:
    """Feeds of one sample each, or of as many as a static first axis asks for."""
    expected = [TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape) for tensor in inputs]
    arrays = load_arrays(path, expected, dims, bounded=False)
    total = len(next(iter(arrays.values())))
    count = next((tensor.shape[0] for tensor in inputs if isinstance(tensor.shape[0], int)), 1)
    if total < count:
        raise CalibrationError(
            "the calibration data has fewer samples than the model's fixed batch",
            where=str(path),
            got=f"{total} samples",
            allowed=f"{count} or more",
            fix="give more samples",
        )
    return [take_batch(arrays, start, count, total) for start in range(0, total - count + 1, count)]
