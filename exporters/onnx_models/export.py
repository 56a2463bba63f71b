"""Any ONNX file -> the contents of a bundle. The file itself, run by ONNX Runtime without optimisation, is the oracle.

model.onnx --read, normalise--> name its dynamic dims, fix those of one size --> <model>/model.onnx
           --ONNX Runtime-----> golden data, and for int8 samples that are held out
<model>/model.onnx -----------> the same typed graphs as a spec
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.calibration.measure import measure_ranges
from exporters.finish import finish_bundle, list_versions
from exporters.garbage import collect_rarely
from exporters.golden.data import write_golden
from exporters.onnx_models.held_out import HALVES, HeldOut, answer_held_out, split_samples, write_held_out
from exporters.onnx_models.known_branches import take_known_branches
from exporters.onnx_models.probabilities import list_probabilities
from exporters.onnx_models.read import Source, read_source
from exporters.onnx_models.reference import Reference, find_reference
from exporters.onnx_models.samples import Feed, make_random_inputs, read_sample_sizes, read_samples
from exporters.passes import Range
from exporters.passes.shared.graph import describe_node, is_onnx
from exporters.trace import choose_sizes
from exporters.typed_graphs import Variant, write_typed_graphs
from exporters.weights import INLINE_BYTES, WeightPool
from specs.bundle import Graph, IoTensor, Manifest
from specs.bundle.files import digest_file
from specs.errors import GraphError, SpecError, name_nearest
from specs.progress import Progress
from specs.schema import Dim, Precision
from specs.targets import Target

COMPONENT = "model"
_HELD_OUT_FILE = f"{COMPONENT}/model.held_out.npz"
#: What a dynamic dim may be when the user did not say.
DEFAULT_DIM = Dim(min=1, opt=1, max=16)
#: Of made-up data; the golden data has the seed 0.
_CALIBRATION_SEEDS, _HELD_OUT_SEEDS = range(1, 17), range(17, 25)
_GOLDEN_NEAR = 3
_NOT_NUMPY = (None, ir.DataType.UNDEFINED, ir.DataType.STRING)
_STANDARD_DOMAINS = ("", "ai.onnx")
_MOST_NAMED = 5
_NUMBERS = "fiub"  # numpy's kinds of floats, integers and bools


@collect_rarely()
def export_model(
    source: Path,
    folder: Path,
    *,
    targets: Sequence[Target],
    precisions: Sequence[Precision],
    calibration: Path | None,
    dims: Mapping[str, Dim],
    find_precision: Callable[[Path], Precision],
    progress: Progress,
) -> Manifest:
    """Write a bundle for an ONNX file into the empty `folder`.

    Args:
        precisions: empty for what the file computes in already.
        find_precision: tells what a file computes in.
        calibration: a .npz with one array per input, samples along the first axis; also feeds the golden data.
        dims: ranges of the file's dynamic dims by name; those not named get DEFAULT_DIM. A dim without a name is
            called `<input>_<axis>`.

    Raises:
        GraphError: the file cannot be read or run, or has an input that cannot be made up (strings, sequences).
        CalibrationError: the calibration data does not fit the inputs.
    """
    read, inputs, ranges = _read(source, dims, calibration, progress)
    progress("golden data from ONNX Runtime", None)
    near = choose_sizes(ranges, near=_GOLDEN_NEAR)
    samples = read_samples(calibration, inputs, ranges, near) if calibration else []
    kept, held_feeds = _split(samples, precisions)
    reference = find_reference(read, inputs, ranges, held_feeds or samples, chosen=dims)
    _require_standard_operators(read.model, targets, source)
    graph, pool = _write_portable(read.model, folder, inputs, reference)
    own = find_precision(folder / graph.file)
    _require_reachable(own, precisions, source)
    if own == "fp32":
        graph = replace(graph, noise_floor=reference.noise_floor, no_noise_floor=reference.no_noise_floor)
    write_golden(folder / graph.golden, reference.feed, reference.outputs)
    judged = _list_rounding(precisions, own)
    held_feeds = held_feeds if samples else list(_make_samples(inputs, reference, _HELD_OUT_SEEDS))
    held = answer_held_out(read, held_feeds) if judged else HeldOut()
    del read
    calibrating = kept or _make_samples(inputs, reference, _CALIBRATION_SEEDS)
    measure = _Calibration(folder / graph.file, calibrating, progress=progress)
    typed = write_typed_graphs(
        folder / graph.file,
        [Variant(target=t, precision=p, as_it_is=p == own) for t in targets for p in precisions or (own,)],
        pool,
        calibrate=measure,
        decided={},
        largest={name: dim.max for name, dim in ranges.items()},
        progress=progress,
    )
    graph = replace(graph, precision=own, typed=typed, held_out=_HELD_OUT_FILE if held.feeds else None)
    if graph.held_out:
        progress("what rounding alone does to samples that are held out", None)
        golden, portable = (reference.feed, reference.outputs), folder / graph.file
        write_held_out(folder / graph.held_out, held, golden, portable, measure.ranges, targets, judged)
    return finish_bundle(folder, _make_manifest(source, ranges, graph), components={COMPONENT: pool})


def _read(
    path: Path, dims: Mapping[str, Dim], calibration: Path | None, progress: Progress
) -> tuple[Source, tuple[IoTensor, ...], Mapping[str, Dim]]:
    """The file, its inputs, and the ranges of their dynamic dims."""
    progress(f"reading {path.name}", None)
    read = read_source(path)
    for note in read.notes:
        progress(f"{path.name}: {note}", None)
    interface = tuple(_describe(value, path) for value in name_dynamic_dims(read.model))
    chosen = _choose_dims(interface, dims, calibration, path, progress)
    return read, *_settle_interface(read.model, interface, chosen)


def _write_portable(
    model: ir.Model, folder: Path, inputs: tuple[IoTensor, ...], reference: Reference
) -> tuple[Graph, WeightPool]:
    outputs = tuple(_describe_output(value, reference, inputs) for value in model.graph.outputs)
    probabilities = list_probabilities(model)
    (folder / COMPONENT).mkdir()
    pool = WeightPool(folder / COMPONENT)
    pool.store(model)
    graph = Graph(
        name=COMPONENT,
        component=COMPONENT,
        file=f"{COMPONENT}/model.onnx",
        golden=f"{COMPONENT}/model.golden.npz",
        inputs=inputs,
        outputs=outputs,
        probabilities=probabilities,
    )
    ir.save(model, folder / graph.file)
    return graph, pool


def _make_manifest(source: Path, ranges: Mapping[str, Dim], graph: Graph) -> Manifest:
    return Manifest(
        name=re.sub(r"[^A-Za-z0-9_.-]", "_", source.stem) or COMPONENT,
        spec_digest=digest_file(source),
        created_by=list_versions(),
        dims={name: (dim.min, dim.opt, dim.max) for name, dim in ranges.items()},
        pipeline={"kind": "tensors", "graph": COMPONENT},
        graphs=(graph,),
    )


def _settle_interface(
    model: ir.Model, interface: tuple[IoTensor, ...], ranges: Mapping[str, Dim]
) -> tuple[tuple[IoTensor, ...], Mapping[str, Dim]]:
    """The inputs and the ranges of their dynamic dims; constants become initializers of the main graph on the way."""
    inputs = interface
    if _has_branches(model):
        take_known_branches(model, {name: dim.min for name, dim in ranges.items() if dim.min == dim.max})
    if not _has_branches(model):
        inputs = _fix_single_sizes(model, interface, ranges)
        ranges = {name: dim for name, dim in ranges.items() if dim.min < dim.max}
    common.LiftConstantsToInitializersPass(size_limit=INLINE_BYTES)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    return inputs, ranges


def name_dynamic_dims(model: ir.Model) -> Sequence[ir.Value]:
    """Give every unnamed dynamic dim of an input a name of its own, so that ranges can refer to it."""
    used = {str(size) for value in model.graph.inputs for size in value.shape or ()}
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([_name_dim(value, axis, size, used) for axis, size in enumerate(value.shape)])
    return model.graph.inputs


def _name_dim(value: ir.Value, axis: int, size: int | ir.SymbolicDim, used: set[str]) -> int | str:
    if not isinstance(size, ir.SymbolicDim):
        return int(size)
    if size.value:
        return size.value
    name, suffix = f"{value.name}_{axis}", 1
    while name in used:
        suffix += 1
        name = f"{value.name}_{axis}_{suffix}"
    used.add(name)
    return name


def _choose_dims(
    inputs: Sequence[IoTensor], given: Mapping[str, Dim], calibration: Path | None, source: Path, progress: Progress
) -> dict[str, Dim]:
    """The range of every dim: what the user said, else what holds the samples' sizes."""
    seen = read_sample_sizes(calibration, inputs) if calibration else {}
    names = [size for tensor in inputs for size in tensor.shape if isinstance(size, str)]
    for name in given:
        if name not in names:
            raise SpecError(
                f"the model has no dynamic dim '{name}'",
                where=str(source),
                allowed=name_nearest(name, set(names)),
                fix="name one of these in --dim" if names else "leave --dim away: every size of this model is fixed",
            )
    chosen = {name: given.get(name) or _hold(seen.get(name, ())) for name in names}
    for name, dim in chosen.items():
        if name not in given and dim != DEFAULT_DIM:
            progress(f"'{name}' is {_spell_range(dim)}, as in the samples; other sizes: --dim", None)
    return chosen


def _hold(sizes: Sequence[int]) -> Dim:
    if all(DEFAULT_DIM.min <= size <= DEFAULT_DIM.max for size in sizes):
        return DEFAULT_DIM
    return Dim(min=min(sizes), opt=sizes[0], max=max(sizes))


def _spell_range(dim: Dim) -> str:
    return f"{dim.min}" if dim.min == dim.max else f"{dim.min} to {dim.max}"


def _require_standard_operators(model: ir.Model, targets: Sequence[Target], source: Path) -> None:
    """TensorRT looks at an operator's type before its domain, and would take a contrib operator for ONNX's own."""
    target = next((target for target in targets if target.lowering != "onnxruntime"), None)
    if target is None:
        return
    foreign = [
        describe_node(node)
        for node in (*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes()))
        if node.domain not in _STANDARD_DOMAINS and node.op_identifier() not in model.functions
    ]
    if foreign:
        raise GraphError(
            f"target '{target.name}' runs TensorRT, which has no operators of other domains",
            where=str(source),
            got=", ".join(foreign[:_MOST_NAMED]) + (", ..." if len(foreign) > _MOST_NAMED else ""),
            allowed="operators of standard ONNX, and functions with a body in the file",
            fix="export for 'cpu'"
            + (
                ""
                if _is_classical(foreign)
                else ", or give the model as it was before it was optimised for ONNX Runtime"
            ),
        )


def _is_classical(described: Sequence[str]) -> bool:
    """Whether these nodes are scikit-learn's and its like's, which have no other form."""
    return all(text.startswith("ai.onnx.ml::") for text in described)


def _require_reachable(own: Precision, asked: Sequence[Precision], source: Path) -> None:
    """What was rounded once stays rounded."""
    if own != "fp32" and "fp32" in asked:
        raise GraphError(
            f"fp32 was asked for, and the file computes in {own}",
            where=str(source),
            allowed=f"{own}, or a lower precision",
            fix="leave --precision away to keep the file's own, or give the model as it was before it was converted",
        )


def _split(samples: Sequence[Feed], precisions: Sequence[Precision]) -> tuple[Sequence[Feed], Sequence[Feed]]:
    """(to calibrate with, held out)."""
    if not _list_rounding(precisions, "fp32"):
        return samples, []
    return split_samples(samples, calibrating="int8" in precisions)


def _list_rounding(precisions: Sequence[Precision], own: Precision) -> list[Precision]:
    """The precisions among these that are judged by what rounding a file of `own` precision explains."""
    found = [p for p in precisions if p == "int8" != own or (p in HALVES and own == "fp32")]
    return list(dict.fromkeys(found))


def _has_branches(model: ir.Model) -> bool:
    """Whether a size that is written in could make a branch that is never taken contradict it.

    Torch's squeeze is traced as a Squeeze behind a question of the size; onnx's inference judges the branch all the
    same, and ONNX Runtime then does not load the file.
    """
    return any(is_onnx(node, "If") for node in model.graph.all_nodes())


def _fix_single_sizes(model: ir.Model, inputs: Sequence[IoTensor], ranges: Mapping[str, Dim]) -> tuple[IoTensor, ...]:
    """Write dims that have one size only into the graph as that size: compilers know best what never changes."""
    fixed = {name: dim.min for name, dim in ranges.items() if dim.min == dim.max}
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            sizes = [size.value if isinstance(size, ir.SymbolicDim) else size for size in value.shape]
            value.shape = ir.Shape([fixed.get(size, size) if isinstance(size, str) else size for size in sizes])
    return tuple(
        IoTensor(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tuple(fixed.get(size, size) if isinstance(size, str) else size for size in tensor.shape),
        )
        for tensor in inputs
    )


def _make_samples(inputs: Sequence[IoTensor], reference: Reference, seeds: range) -> Iterator[Feed]:
    for seed in seeds:
        yield make_random_inputs(inputs, reference.sizes, reference.draw, seed=seed)


class _Calibration:
    """Measures ranges when int8 first asks for them, and keeps them."""

    def __init__(self, portable: Path, samples: Iterable[Feed], *, progress: Progress) -> None:
        self.portable, self.samples, self.progress = portable, samples, progress
        self.ranges: Mapping[str, Range] = {}

    def __call__(self, tensors: Sequence[str]) -> Mapping[str, Range]:
        """The range of each tensor."""
        self.ranges = measure_ranges(self.portable, tensors, self.samples, method="mse", progress=self.progress)
        return self.ranges


def _describe(value: ir.Value, source: Path) -> IoTensor:
    dtype, shape = value.dtype, value.shape
    kind = dtype.numpy() if isinstance(value.type, ir.TensorType) and dtype not in _NOT_NUMPY else None
    if shape is None or kind is None or np.dtype(kind).kind not in _NUMBERS:
        raise GraphError(
            f"input '{value.name}' cannot be fed with arrays",
            where=str(source),
            got=f"type {value.type}, shape {shape}",
            allowed="a tensor of a numpy type with a known rank",
            fix="cut the graph so that its inputs are plain tensors",
        )
    sizes = tuple(size.value or "" if isinstance(size, ir.SymbolicDim) else int(size) for size in shape)
    return IoTensor(name=value.name or "", dtype=np.dtype(kind).name, shape=sizes)


def _describe_output(value: ir.Value, reference: Reference, inputs: Sequence[IoTensor]) -> IoTensor:
    """The declared shape, and `<output>_<axis>` for dims that it leaves open or that the reference contradicts."""
    array = reference.outputs[value.name or ""]
    known = {
        size: length
        for tensor in inputs
        for size, length in zip(tensor.shape, reference.feed[tensor.name].shape, strict=True)
        if isinstance(size, str)
    }
    declared = list(value.shape) if value.shape is not None and len(value.shape) == array.ndim else [None] * array.ndim
    sizes: list[int | str] = []
    for axis, (size, length) in enumerate(zip(declared, array.shape, strict=True)):
        name = size.value if isinstance(size, ir.SymbolicDim) else size
        right = known.get(name, length) == length if isinstance(name, str) else name == length
        sizes.append(name if name is not None and right else f"{value.name}_{axis}")
    if not value.is_graph_input():
        value.shape = ir.Shape(sizes)
    return IoTensor(name=value.name or "", dtype=array.dtype.name, shape=tuple(sizes))
