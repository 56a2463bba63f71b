"""Which nodes must stay float32 in a half-precision graph, each with its reason.

float16 has 11 bits of precision, a largest value of 65504 and a smallest normal one of 6.1e-5; bfloat16 has the range
of float32 and 8 bits. Six families lose more than rounding:

    discontinuous   a rounded input flips an index, a comparison or an integer         ArgMax, TopK, Floor, Less
    leaves range    squares of |x| > 256, exponentials of x > 11, long sums            Pow, Exp, ReduceSumSquare, CumSum
    index           positions and lengths: integers above 2048 are not exact           Cast(int64), Range
    angle           the argument of a sine: its error is absolute, not relative        what feeds Sin and Cos
    position        where a tensor is read: a rounded place is another place           what feeds Floor, Cast(int)
    spectrum        a logarithm shows every rounding of what it is made of             samples to log-mel

From a node of the second and third family float32 follows the data through elementwise arithmetic (mean, epsilon,
square root, ...) up to and with the first node that applies the statistic to other data. The last rule is about
constants: an epsilon of 1e-12 is zero in float16, a weight of 1e6 infinite. And a graph may say itself what must stay
(`specs.families.GraphSpec.keep_float32`): such nodes carry the reason as their metadata.

Not here: whether an operator takes float16 at all (its schema says so, see `convert_to_float16`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from exporters.passes.keep_plugins import HALF_PORTS, POSITION_INPUTS, is_plugin
from exporters.passes.shared.derived import find_stored, list_pieces
from exporters.passes.shared.graph import is_onnx, list_graphs, read_constant
from exporters.passes.shared.spectra import find_spectra
from specs.bundle import SPECTRUM_REASON

#: Metadata of a node that its family keeps in float32: the reason.
KEEP_KEY = "metagen.keep_float32"

LARGEST_FLOAT16 = 65504.0
SMALLEST_NORMAL_FLOAT16 = 2.0**-14

_DISCONTINUOUS = frozenset(
    "ArgMax ArgMin Bernoulli BitCast Ceil DynamicQuantizeLinear Equal Floor Greater GreaterOrEqual Hardmax IsInf IsNaN"
    " Less LessOrEqual Mod Multinomial NonMaxSuppression NonZero OneHot QuantizeLinear RoiAlign Round Shrink Sign"
    " ThresholdedRelu TopK Unique".split()
)
_LEAVES_RANGE = frozenset(
    "Cosh CumProd CumSum Det DFT Exp GlobalLpPool LRN Log LpNormalization LpPool MeanVarianceNormalization"
    " NegativeLogLikelihoodLoss Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSum"
    " ReduceSumSquare STFT Sinh SoftmaxCrossEntropyLoss Softplus Tan".split()
)
_ANGLES = frozenset({"Sin", "Cos"})
#: Float32 follows the data through these.
_ELEMENTWISE = frozenset(
    "Abs Add Clip Concat Div Einsum Expand Flatten Gather Identity MatMul Max Mean Min Mul Neg Reciprocal ReduceMax"
    " ReduceMean ReduceMin ReduceSum Reshape Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where"
    " MetagenStepLinear".split()  # a product, as MatMul
)
#: ... and ends with these, where they bring the statistic together with other data.
_APPLIES = frozenset({"Div", "Mul", "Sub", "Add"})
#: These make an index of a position; so does a Cast to integers.
_PLACES = frozenset({"Floor", "Ceil", "Round"})
#: Angles and positions are followed backwards through these only: not through a layer's weights.
_SOURCES = (
    _ELEMENTWISE - {"MatMul", "MetagenStepLinear", "Einsum", "Gather", "ReduceMax", "ReduceMin", "ReduceMean"}
) | {"Pad"}
#: An overflowing constant is a mask here: it saturates and loses nothing.
_MASKING = frozenset("Add Sub Where Mul Expand Concat Clip Min Max Pad Identity Reshape Unsqueeze".split())

_INTEGERS = frozenset(getattr(ir.DataType, name) for name in ("INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64"))

Reasons = dict[ir.Node, str]


def find_kept(model: ir.Model, half: ir.DataType) -> Reasons:
    """Every node that stays float32 for its numbers' sake."""
    reasons: Reasons = {}
    for graph in list_graphs(model):
        roots: Reasons = {}
        for node in graph:
            if reason := _find_reason(node, half):
                reasons[node] = reason
                if _spreads(node):
                    roots[node] = reason
        _follow_forward(graph, roots, reasons)
        _follow_backward(graph, reasons)
        for node in find_spectra(graph):
            reasons[node] = f"{SPECTRUM_REASON}: the logarithm behind it shows every rounding"
    return reasons


def is_float(value: ir.Value | None) -> bool:
    """True for a float32 tensor."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def _find_reason(node: ir.Node, half: ir.DataType) -> str | None:
    if half == ir.DataType.FLOAT16 and KEEP_KEY in node.metadata_props:
        return node.metadata_props[KEEP_KEY]
    if node.domain == "ai.onnx.ml":
        return "discontinuous: trees, scalers and encoders compare and index"
    if is_plugin(node):
        typed = [node.inputs[index] for index in HALF_PORTS[node.op_type][0] if index < len(node.inputs)]
        return _find_constant_reason(node, typed) if half == ir.DataType.FLOAT16 else None
    if not is_onnx(node, node.op_type):
        return None
    reason = _find_discontinuity(node) or _find_index_reason(node) or _find_range_reason(node)
    if reason is None and node.op_type in _ANGLES:
        reason = "angle: the error of a sine's argument is absolute"
    return reason or (_find_constant_reason(node, node.inputs) if half == ir.DataType.FLOAT16 else None)


def _find_discontinuity(node: ir.Node) -> str | None:
    reads_float = any(is_float(value) for value in node.inputs)
    if node.op_type == "Cast" and reads_float:
        to = ir.DataType(node.attributes["to"].as_int())
        return (
            None if to.is_floating_point() else "discontinuous: a rounded input changes its integer or boolean result"
        )
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "discontinuous: a rounded input changes the index of a maximum"
    if _samples_volume(node):
        return "position: a rounded place to read from is another place"
    if node.op_type not in _DISCONTINUOUS or not reads_float:
        return None
    if node.op_type == "QuantizeLinear" and _has_constant_scale(node):
        return None
    return "discontinuous: a rounded input changes its result by a whole step"


def _find_index_reason(node: ir.Node) -> str | None:
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Cast" and first is not None and first.dtype in _INTEGERS and is_float(node.outputs[0]):
        return "index arithmetic: integers above 2048 are not exact in half precision"
    if node.op_type == "Range" and is_float(node.outputs[0]):
        return "index arithmetic: its sums are not exact in half precision"
    return None


def _find_range_reason(node: ir.Node) -> str | None:
    if node.op_type in ("ScatterElements", "ScatterND") and "reduction" in node.attributes:
        return "range: it accumulates, and ONNX Runtime has no half kernel for it"
    if node.op_type == "Attention" and len(node.outputs) > 3:
        return "range: it returns its masked scores, which reach the lowest float32"
    if node.op_type in _LEAVES_RANGE:
        return "range: squares, exponentials, logarithms and long sums leave the range of half precision"
    if node.op_type == "Mul" and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]:
        return "range: a square overflows float16 from |x| = 256"
    return None


def _has_constant_scale(node: ir.Node) -> bool:
    """A calibrated Q/DQ pair: the engine works on int8 there, and its scale has the type of the rest."""
    return len(node.inputs) > 1 and read_constant(node.inputs[1]) is not None


def _find_constant_reason(node: ir.Node, inputs: Sequence[ir.Value | None]) -> str | None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Resize", "Constant"):
        return None
    for value in inputs:
        tensor = read_constant(value) if is_float(value) else None
        if value is None or tensor is None:
            continue
        stored = find_stored(tensor)
        if stored is not None and stored.dtype == ir.DataType.FLOAT16:
            continue  # what comes from float16 fits into it
        largest, smallest = measure_magnitude(tensor)
        if largest > LARGEST_FLOAT16 and node.op_type not in _MASKING:
            return f"constant '{value.name}' holds {largest:.3g}, float16 ends at 65504"
        if 0 < largest < SMALLEST_NORMAL_FLOAT16 or (tensor.size <= 16 and 0 < smallest < SMALLEST_NORMAL_FLOAT16):
            return f"constant '{value.name}' holds {smallest:.3g}, float16 is exact from 6.1e-5"
        if node.op_type == "BatchNormalization" and 0 < smallest < SMALLEST_NORMAL_FLOAT16:
            return f"statistic '{value.name}' holds {smallest:.3g}, float16 is exact from 6.1e-5"
    return None


def measure_magnitude(tensor: ir.TensorProtocol) -> tuple[float, float]:
    """The largest and the smallest non-zero finite |x|; (0, 0) when there is none."""
    largest, smallest = 0.0, math.inf
    for piece in list_pieces(tensor):
        magnitude = np.abs(piece)
        magnitude = magnitude[np.isfinite(magnitude) & (magnitude > 0)]
        if magnitude.size:
            largest, smallest = max(largest, float(magnitude.max())), min(smallest, float(magnitude.min()))
    return (largest, smallest) if largest else (0.0, 0.0)


def _spreads(node: ir.Node) -> bool:
    """Whether what this node gives may itself lie outside half precision."""
    return node.op_type in _LEAVES_RANGE or node.op_type in ("Cast", "Range", "Mul")


def _follow_forward(graph: ir.Graph, roots: Reasons, reasons: Reasons) -> None:
    origins: dict[ir.Node, tuple[ir.Node, str]] = {node: (node, reason) for node, reason in roots.items()}
    for node in graph:
        if node in origins or node.op_type not in _ELEMENTWISE | {"Pow", "Exp", "Log", "Softplus"}:
            continue
        floats = [value for value in node.inputs if is_float(value)]
        variable = [value for value in floats if read_constant(value) is None]
        derived = [value.producer() for value in variable if value is not None and value.producer() in origins]
        if not derived or derived[0] is None:
            continue
        root, reason = origins[derived[0]]
        whole = len(derived) == len(variable)
        if whole:
            origins[node] = (root, reason)
        if whole or node.op_type in _APPLIES:
            reasons.setdefault(node, f"follows '{root.name}' ({reason})")


def _follow_backward(graph: ir.Graph, reasons: Reasons) -> None:
    """Angles and positions: the arithmetic that leads up to them."""
    angles: set[ir.Node] = set()
    positions: set[ir.Node] = set()
    for node in reversed(graph):
        if not (node.op_type in _SOURCES or _narrows(node)) or not any(is_float(value) for value in node.outputs):
            continue
        uses = [use for value in node.outputs for use in value.uses()]
        if any(use.node.op_type in _ANGLES or use.node in angles for use in uses):
            angles.add(node)
            reasons.setdefault(node, "angle: it is the argument of a sine")
        if any(_is_place(use.node, use.idx) or use.node in positions for use in uses):
            positions.add(node)
            reasons.setdefault(node, "position: a rounded place to read from is another place")


def _samples_volume(node: ir.Node) -> bool:
    first = node.inputs[0] if node.inputs else None
    return is_onnx(node, "GridSample") and first is not None and len(first.shape or ()) == 5


def _narrows(node: ir.Node) -> bool:
    """Whether this is the end of a table that was computed in float64: places and angles are."""
    first = node.inputs[0] if node.inputs else None
    return is_onnx(node, "Cast") and first is not None and first.dtype == ir.DataType.DOUBLE


def _is_place(node: ir.Node, index: int) -> bool:
    """Whether the input at `index` says where something is read."""
    if is_plugin(node):
        return index in POSITION_INPUTS[node.op_type]
    if _samples_volume(node):
        return index == 1
    if not is_onnx(node, "Cast"):
        return is_onnx(node, *_PLACES)
    return ir.DataType(node.attributes["to"].as_int()) in _INTEGERS
