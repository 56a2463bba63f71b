"""Where a graph first leaves its reference: the first tensor, in execution order, that both graphs have and whose
error, rms(y - r) / rms(r), goes beyond the limit.

The root mean square is asked here where the outputs' gate asks for the largest error: of the hundreds of tensors of a
healthy int8 graph some have one bad element, few are bad as a whole. Rounding noise has maxima of about three times
its rms, hence MAX_TO_RMS.

Both graphs run in ONNX Runtime with tensors of a name they share as the outputs, as many at a time as fit into
CHUNK_BYTES, from the first on: what comes later is not even computed when an early one is the culprit. Functions are
inlined first, so that the portable graph shows what is inside its custom ops. Layout-changing passes rename what they
change, so a shared name of another shape is not compared. Needs `onnx`.

Masks are no differences: -3.4e38 in one graph is -1.7e38 in another, -32752 in float16, or -infinity, and all mean the
same. What both graphs mask is left out, so that it does not hide the scores beside it either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends.onnxruntime import list_exceptions, make_session
from engines.checking.compare import Array, find_scale, measure_difference
from engines.onnx_files.read import parse_onnx
from engines.onnx_files.records import Node
from specs.errors import MetagenError
from specs.report import Divergence

_COMPARED = ("float32", "float16", "float64")
MAX_TO_RMS = 3.0
#: Of the tensors that are held at a time, of both graphs together.
CHUNK_BYTES = 512 << 20
_BYTES_PER_ELEMENT = 8  # float32 twice
_BLOCK = 1 << 18  # elements that are compared at a time
#: Nothing that a model computes is beyond this; only what stands for minus infinity.
_MASK = 1e30
_LARGEST_FLOAT16 = 65504.0
_SATURATED = 30000.0  # what float16 has in a mask's place, scores already added to it


def find_divergence(reference: Path, failing: Path, feed: Mapping[str, Array], *, limit: float) -> Divergence | None:
    """Compare two ONNX files tensor by tensor on one feed.

    Args:
        limit: the limit of the failed output, as max |y - r| / rms(r). When no tensor goes beyond it, the one with
            the largest jump over what came before is named.

    Returns: None when nothing can be compared: `onnx` is missing, no name is shared, or a graph does not run so.
    """
    try:
        import onnx  # noqa: F401  # asked for here, used below
    except ImportError:
        return None
    pair = _Pair(reference, failing, feed)
    refusals: tuple[type[Exception], ...] = (MetagenError, *list_exceptions())
    try:
        found = _find_tensor(pair, limit / MAX_TO_RMS)
        if found is None:
            return None
        want, got = pair.compute([found])[found]
    except refusals:
        return None
    before, after = pair.makers
    origin = after[found].module_path or before[found].module_path
    difference = measure_difference(found, got, want)
    return Divergence(tensor=found, op_type=after[found].op_type, module_path=origin, difference=difference)


class _Pair:
    """Two graphs, and the tensors whose names they share, in the execution order of the failing one."""

    def __init__(self, reference: Path, failing: Path, feed: Mapping[str, Array]) -> None:
        self.paths, self.feed = (reference, failing), feed
        self.protos = tuple(_load_inlined(path) for path in self.paths)
        self.makers = tuple(_list_outputs(proto) for proto in self.protos)
        self.types = _infer_types(self.protos[0], feed)
        others = {name for name, kind in self.types.items() if kind.WhichOneof("value") not in (None, "tensor_type")}
        self.shared = [name for name in self.makers[1] if name in self.makers[0] and name not in others]

    def compute(self, names: Sequence[str]) -> dict[str, tuple[Array, Array]]:
        """Name -> what the reference has there, and what the failing graph has."""
        want, got = (_run(proto, path, names, self.feed) for proto, path in zip(self.protos, self.paths, strict=True))
        return {name: (want[name], got[name]) for name in names}

    def split(self) -> Iterator[list[str]]:
        """The shared names in chunks; a tensor of unknown size counts as the largest known."""
        known = {name: _count_elements(self.types.get(name)) for name in self.shared}
        largest = max((count for count in known.values() if count is not None), default=0)
        chunk: list[str] = []
        held = 0
        for name in self.shared:
            count = known[name]
            size = _BYTES_PER_ELEMENT * (largest if count is None else count)
            if chunk and held + size > CHUNK_BYTES:
                yield chunk
                chunk, held = [], 0
            chunk.append(name)
            held += size
        if chunk:
            yield chunk


def _find_tensor(pair: _Pair, limit: float) -> str | None:
    """The first tensor beyond the limit; else the largest jump."""
    errors: dict[str, float] = {}
    for chunk in pair.split():
        for name, (want, got) in pair.compute(chunk).items():
            if got.dtype.name in _COMPARED and got.shape == want.shape and got.size:
                errors[name] = _measure_error(got, want)
                if errors[name] > limit:
                    return name
    return _find_jump(errors)


def _load_inlined(path: Path) -> Any:
    import onnx
    import onnx.inliner

    proto = onnx.load(str(path), load_external_data=False)
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _list_outputs(proto: Any) -> dict[str, Node]:
    """Tensor -> the node that makes it, in execution order."""
    graph = parse_onnx(proto.SerializeToString(), Path("a graph in memory")).graph
    return {name: node for node in graph.nodes for name in node.outputs if name}


def _infer_types(proto: Any, feed: Mapping[str, Array]) -> dict[str, Any]:
    """Tensor -> its onnx.TypeProto on this feed, where that can be told without running."""
    import onnx
    import onnx.shape_inference

    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        if value.name in feed:
            dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in feed[value.name].shape]
            value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
        elif value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # types that contradict each other: ONNX Runtime decides about them
        return {}
    return {value.name: value.type for value in (*inferred.value_info, *inferred.output)}


def _count_elements(type_proto: Any) -> int | None:
    """None where a size is not known."""
    if type_proto is None or not type_proto.tensor_type.HasField("shape"):
        return None
    dims = type_proto.tensor_type.shape.dim
    return math.prod(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _run(proto: Any, path: Path, names: Sequence[str], feed: Mapping[str, Array]) -> dict[str, Array]:
    """The graph with these tensors as its outputs, in place of what it had."""
    import onnx

    if not names:
        return {}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = make_session(path, proto.SerializeToString())
    return dict(zip(names, session.run(list(names), dict(feed)), strict=True))


def _find_jump(errors: Mapping[str, float]) -> str | None:
    best, jump, worst = None, 1.0, 1e-9
    for name, error in errors.items():
        if error / worst > jump:
            best, jump = name, error / worst
        worst = max(worst, error)
    return best


def _measure_error(value: Array, reference: Array) -> float:
    """rms(y - r) / rms(r) of what is no mask in both; infinite for a NaN, or for anything where r is all zero."""
    scale = 0.0
    for got, want in _read_blocks(value, reference):
        if not (np.isfinite(got).all() and np.isfinite(want).all()):
            return math.inf
        scale = max(scale, find_scale(got, want) if got.any() or want.any() else 0.0)
    errors = squares = 0.0
    scale = scale or 1.0
    for got, want in _read_blocks(value, reference):
        errors += float(np.square(got / scale - want / scale).sum())
        squares += float(np.square(want / scale).sum())
    return math.sqrt(errors / squares) if squares else (math.inf if errors else 0.0)


def _read_blocks(value: Array, reference: Array) -> Iterator[tuple[Array, Array]]:
    """Both in float64, without what is masked, a block at a time: copies of the whole would take several times it."""
    flat = value.reshape(-1), reference.reshape(-1)
    for start in range(0, value.size, _BLOCK):
        got, want = (array[start : start + _BLOCK].astype(np.float64) for array in flat)
        seen = ~_find_masked(got, want)
        yield got[seen], want[seen]


def _find_masked(got: Array, want: Array) -> Array:
    """Where both hold what only a mask holds, of one sign: beyond any number, or saturated in half precision."""
    with np.errstate(invalid="ignore"):  # a NaN is no mask
        far_got, far_want = np.abs(got), np.abs(want)
        beyond = (far_want >= _MASK) & (far_got >= _SATURATED)
        halved = (far_want > _LARGEST_FLOAT16) & (far_got >= _SATURATED) & (far_got <= _LARGEST_FLOAT16)
        masked: Array = (beyond | halved) & (np.sign(got) == np.sign(want))
    return masked
