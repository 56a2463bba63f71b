"""Where a graph first leaves its reference: the first tensor, in execution order, that both graphs have and whose
error, rms(y - r) / rms(r), goes beyond the limit.

The root mean square is asked here where the outputs' gate asks for the largest error: of the hundreds of tensors of a
healthy int8 graph some have one bad element, few are bad as a whole. Rounding noise has maxima of about three times
its rms, hence MAX_TO_RMS.

Both graphs run in ONNX Runtime with every tensor of a name they share marked as an output; functions are inlined
first, so that the portable graph shows what is inside its custom ops. Layout-changing passes rename what they change,
so a shared name of another shape is not compared. Needs `onnx`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends.onnxruntime import list_exceptions, make_session
from engines.compare import Array, measure_difference
from engines.onnx_file import parse_onnx
from engines.onnx_records import Node
from specs.errors import MetagenError
from specs.report import Divergence

_COMPARED = ("float32", "float16", "float64")
MAX_TO_RMS = 3.0


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
    before, after = _load_inlined(reference), _load_inlined(failing)
    nodes = _list_outputs(after)
    known = {name for name, _ in _list_outputs(before)}
    shared = [name for name, _ in nodes if name in known]
    refusals: tuple[type[Exception], ...] = (MetagenError, *list_exceptions())
    try:
        wanted = _run_marked(before, reference, shared, feed)
        got = _run_marked(after, failing, shared, feed)
    except refusals:
        return None
    errors = {
        name: _measure_error(got[name], wanted[name])
        for name in shared
        if got[name].dtype.name in _COMPARED and got[name].shape == wanted[name].shape and got[name].size
    }
    found = _choose(errors, limit / MAX_TO_RMS)
    if found is None:
        return None
    node = dict(nodes)[found]
    origin = node.module_path or dict(_list_outputs(before))[found].module_path
    difference = measure_difference(found, got[found], wanted[found])
    return Divergence(tensor=found, op_type=node.op_type, module_path=origin, difference=difference)


def _load_inlined(path: Path) -> Any:
    import onnx
    import onnx.inliner

    proto = onnx.load(str(path), load_external_data=False)
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _list_outputs(proto: Any) -> list[tuple[str, Node]]:
    """(tensor, the node that makes it), in execution order."""
    graph = parse_onnx(proto.SerializeToString(), Path("a graph in memory")).graph
    return [(name, node) for node in graph.nodes for name in node.outputs if name]


def _run_marked(proto: Any, path: Path, names: Sequence[str], feed: Mapping[str, Array]) -> dict[str, Array]:
    import onnx

    present = {output.name for output in proto.graph.output}
    for name in names:
        if name not in present:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = make_session(path, proto.SerializeToString())
    return dict(zip(names, session.run(list(names), dict(feed)), strict=True))


def _choose(errors: Mapping[str, float], limit: float) -> str | None:
    for name, error in errors.items():
        if error > limit:
            return name
    best, jump, worst = None, 1.0, 1e-9
    for name, error in errors.items():
        if error / worst > jump:
            best, jump = name, error / worst
        worst = max(worst, error)
    return best


def _measure_error(value: Array, reference: Array) -> float:
    """rms(y - r) / rms(r); infinite for a NaN, or for anything where the reference is all zero."""
    want = reference.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are what may be looked for
        error = math.sqrt(float(np.mean(np.square(value.astype(np.float64) - want))))
        rms = math.sqrt(float(np.mean(np.square(want))))
    if math.isnan(error):
        return math.inf
    return error / rms if rms else (math.inf if error else 0.0)
