"""How much of a graph computes in which precision, and whether that is what was asked for.

Precision is counted three ways, each as fractions of 1:

    nodes         nodes whose result is a float; Casts, Q/DQ and nodes that only move values are left out
    weight bytes  stored tensors of floating or quantised type
    compute       multiply-accumulates. A product counts as int8 when both operands come out of a DequantizeLinear,
                  so a weight-only quantised product counts as what it computes in

Shapes come from the file; with `onnx` installed they are inferred where the file does not say, and functions are
inlined first. A dimension that is only known at run time counts as its size in `sizes`, or as 1; but the rows of a
matrix of tokens, [B T, C], which no file spells, are followed from the Reshape that made it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.onnx_files.macs import MACS
from engines.onnx_files.read import parse_onnx, read_onnx
from engines.onnx_files.records import DTYPES, GraphPart, Node, OnnxFile, Shape, Value
from specs.bundle import Manifest
from specs.bundle.files import resolve_inside
from specs.errors import BuildError, GraphError
from specs.report import PrecisionShares

if TYPE_CHECKING:
    from specs.schema import Precision

_PRECISIONS = {
    "float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "int4": "int4", "uint4": "int4", "float4_e2m1fn": "fp4",
}  # fmt: skip
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_MOVES = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Gather")
_SILENT = (*_MOVES, "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Constant", "ConstantOfShape", "Shape")
#: ONNX Runtime's integer products: their operands are int8 whatever the result's type.
_INTEGER_PRODUCTS = (
    "MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv", "QGemm", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)  # fmt: skip

#: (lowering, precision) where the precision is how weights are stored, and products compute in fp32.
STORED_ONLY = (("onnxruntime", "fp16"),)
#: Least share of the compute that a graph of this precision must do in it (or lower), and why less than all.
LEAST_COMPUTE: Mapping[str, tuple[float, str]] = {
    "fp32": (0.999, "nothing else was asked for"),
    "fp16": (0.9, "a few nodes may be kept in fp32 for their range"),
    "bf16": (0.9, "a few nodes may be kept in fp32 for their accuracy"),
    "int8": (0.5, "the attention core and named sensitive layers stay in the graph's high precision"),
}
_VISIBLE_SHARE = 0.01
#: Of these a row of the result is a row of the first input that has rows.
_ROW_BY_ROW = (
    "Add", "Cast", "DequantizeLinear", "Div", "Erf", "Gelu", "Gemm", "LayerNormalization", "MatMul", "Mul", "Pow",
    "QuantizeLinear", "Relu", "Sigmoid", "Softmax", "Split", "Sqrt", "Sub", "Tanh",
)  # fmt: skip
#: Opsets in which onnx does not follow the result of a Shape; from 15 on it does, and no shape rule changed between.
_WITHOUT_VALUES_OF_SHAPES = (13, 14)
#: Precisions that are lower than the asked one and so satisfy it; no target has fp64 to ask for.
_LOWER = {"fp32": ("fp64",), "fp16": ("int8", "fp8", "int4"), "bf16": ("int8", "fp8", "int4"), "int8": ("fp8", "int4")}


def measure_shares(path: Path, sizes: Mapping[str, int] | None = None) -> PrecisionShares:
    """The shares of each precision in an ONNX file."""
    return measure_graph(read_onnx(path), sizes or {})[0]


def measure_typed_graphs(folder: Path, manifest: Manifest) -> dict[str, PrecisionShares]:
    """The same of every typed graph of a bundle at its dims' opt, by file."""
    sizes = {name: opt for name, (_, opt, _) in manifest.dims.items()}
    return {
        typed.file: measure_shares(resolve_inside(folder, typed.file), sizes)
        for graph in manifest.graphs
        for typed in graph.typed
    }


def measure_front_end(path: Path, sizes: Mapping[str, int], names: Collection[str]) -> float:
    """The share of the compute that lies in the nodes of these names."""
    if not names:
        return 0.0
    model = _flatten(read_onnx(path), sizes)
    amounts = [(node.name in names, macs) for node, _, macs in _list_products(model, _Types(model), sizes)]
    return sum(macs for named, macs in amounts if named) / max(sum(macs for _, macs in amounts), 1.0)


def lacks_weights(path: Path) -> bool:
    """Whether no product of an ONNX file has a stored weight: int8 finds nothing to quantise there."""
    model = read_onnx(path)
    types = _Types(model)
    return not any(
        types.find_weight_dtype(name) for node in _list_nodes(model) if node.op_type in MACS for name in node.inputs[:2]
    )


def find_own_precision(path: Path) -> Precision:
    """The lowest precision that a file as it is computes a visible part in: how exact its answers can be."""
    shares = measure_shares(path)
    amounts = shares.compute or shares.nodes
    for precision in ("int8", "fp16", "bf16"):
        if sum(amounts.get(name, 0.0) for name in (precision, *_LOWER[precision])) >= _VISIBLE_SHARE:
            return precision
    return "fp32"


def require_precision(shares: PrecisionShares, precision: str, *, where: str, front_end: float = 0.0) -> None:
    """Refuse a graph or engine that does not compute in the precision it was asked for.

    Args:
        front_end: the share of the compute that makes the model's input in fp32; the rest is what counts.

    Raises:
        BuildError: with the shares. A graph without a product (nothing to lower) passes.
    """
    least, reason = LEAST_COMPUTE.get(precision, (0.5, ""))
    got = sum(shares.compute.get(name, 0.0) for name in (precision, *_LOWER.get(precision, ())))
    if shares.compute and got < least * (1.0 - front_end):
        found = ", ".join(f"{share:.1%} {name}" for name, share in sorted(shares.compute.items(), key=lambda i: -i[1]))
        raise BuildError(
            f"{precision} was asked for, and the graph does not compute in it",
            where=where,
            got=f"{found} of the multiply-accumulates",
            allowed=f"at least {least:.1%} {precision}: {reason}",
            fix=f"export it again with --precision {precision}; precision is written in the typed graph",
        )


def require_stored_weights(path: Path, *, kept: Collection[str], where: str) -> None:
    """Refuse a float16 graph for CPUs, which computes in fp32, unless the weights of its products are stored narrow.

    Args:
        kept: names of nodes that stay float32 with a reason.

    Raises:
        BuildError: naming the first product whose weight is not.
    """
    model = read_onnx(path)
    types = _Types(model)
    for node in _list_nodes(model):
        if node.op_type not in MACS or node.name in kept:
            continue
        for name in node.inputs[:2]:
            dtype = types.find_weight_dtype(name)
            if dtype in ("float64", "float32") and len(types.shapes.get(name) or ()) > 1:
                raise BuildError(
                    "fp16 was asked for, and a weight is stored in more",
                    where=where,
                    got=f"'{name}' of {node.op_type} '{node.name}' is {dtype}",
                    allowed="fp16 weights, computed in fp32: so is fp16 on CPUs",
                    fix="export it again with --precision fp16; precision is written in the typed graph",
                )


def _flatten(model: OnnxFile, sizes: Mapping[str, int]) -> OnnxFile:
    """The same graph with functions inlined and shapes inferred, as far as `onnx` is installed and able.

    Dims are replaced by their sizes first: inference goes further with numbers (a Resize of a named dim ends it).
    """
    try:
        import onnx
        import onnx.inliner
        import onnx.shape_inference
        from google.protobuf.message import DecodeError
    except ImportError:
        return model
    try:
        proto = onnx.load(str(model.path), load_external_data=False)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        graph = proto.graph
        for index, value in enumerate((*graph.input, *graph.output, *graph.value_info)):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                batch = axis == 0 and index < len(graph.input) and not dim.HasField("dim_value")
                if dim.dim_param in sizes or batch:
                    dim.dim_value = sizes.get(dim.dim_param, 1)
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx") and entry.version in _WITHOUT_VALUES_OF_SHAPES:
                entry.version = max(_WITHOUT_VALUES_OF_SHAPES) + 1
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        return parse_onnx(proto.SerializeToString(), model.path)
    except DecodeError as error:
        raise GraphError(
            "this is not an ONNX file, or it is damaged",
            where=str(model.path),
            got=str(error),
            fix="export or copy the file again",
        ) from None
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return model  # shapes from the file alone: unknown ones count as 1


def _list_parts(part: GraphPart) -> Iterator[GraphPart]:
    """A graph and the bodies of its If, Loop and Scan: each counts once, however often it runs."""
    yield part
    for node in part.nodes:
        for body in node.subgraphs:
            yield from _list_parts(body)


class _Types:
    """dtype and shape of every tensor of the graph and the bodies inside it, as far as they are known."""

    def __init__(self, model: OnnxFile) -> None:
        parts = list(_list_parts(model.graph))
        nodes = [node for part in parts for node in part.nodes]
        known: list[Value] = [value for part in parts for value in (*part.inputs, *part.values, *part.outputs)]
        self.dtypes = {v.name: v.dtype for v in known if v.dtype}
        self.shapes: dict[str, Shape | None] = {v.name: v.shape for v in known}
        self.weights = {weight.name for part in parts for weight in part.weights}
        for weight in (weight for part in parts for weight in part.weights):
            self.dtypes[weight.name], self.shapes[weight.name] = weight.dtype, weight.shape
        self.producers = {name: node for node in nodes for name in node.outputs if name}
        for node in nodes:
            self._add_constant(node)
            self._add_outputs(node)

    def _add_constant(self, node: Node) -> None:
        if node.op_type == "Constant" and node.constants and node.outputs:
            self.dtypes[node.outputs[0]] = node.constants[0].dtype
            self.shapes[node.outputs[0]] = node.constants[0].shape

    def _add_outputs(self, node: Node) -> None:
        dtype = self._guess_dtype(node)
        for name in node.outputs:
            if name and dtype:
                self.dtypes.setdefault(name, dtype)

    def _guess_dtype(self, node: Node) -> str:
        """Without inference: a Cast says its type, Q and DQ have their zero point's and scale's, others an input's."""
        if node.op_type == "Cast":
            to = node.attributes.get("to")
            return DTYPES.get(to, "") if isinstance(to, int) else ""
        if node.op_type == "QuantizeLinear":
            return self.dtypes.get(node.inputs[2], "") if len(node.inputs) > 2 else "uint8"
        if node.op_type == "DequantizeLinear" and len(node.inputs) > 1:
            return self.dtypes.get(node.inputs[1], "")
        return next((self.dtypes[name] for name in node.inputs if self.dtypes.get(name) in _FLOATS), "")

    def follow_rows(self, sizes: Mapping[str, int]) -> None:
        """Give matrices whose number of rows is unknown the rows of what they were made from."""
        rows: dict[str, int] = {}
        for name, node in self.producers.items():
            shape = self.shapes.get(name)
            if shape is None or len(shape) != 2 or shape[0] is not None or not isinstance(shape[1], int):
                continue
            if node.op_type == "Reshape":
                whole = self.shapes.get(node.inputs[0])
                rows[name] = math.prod(_resolve(whole, sizes)) // shape[1] if whole else 1
            elif node.op_type in _ROW_BY_ROW:
                rows[name] = next((rows[given] for given in node.inputs if given in rows), 1)
            self.shapes[name] = (rows.get(name, 1), shape[1])

    def find_stored(self, name: str) -> str:
        """The quantised precision that a tensor was dequantised from, "" when it was not."""
        for _ in range(8):
            node = self.producers.get(name)
            if node is None or not node.inputs:
                return ""
            if node.op_type == "DequantizeLinear":
                return _PRECISIONS.get(self._find_quantised_dtype(node), "")
            if node.op_type not in _MOVES:
                return ""
            name = node.inputs[0]
        return ""

    def find_weight_dtype(self, name: str) -> str:
        """The type in the file of a weight, which may be widened, moved or dequantised behind it; "" of all else."""
        for _ in range(8):
            node = self.producers.get(name)
            if node is None or node.op_type == "Constant":
                return self.dtypes.get(name, "") if node is not None or name in self.weights else ""
            if node.op_type not in (*_MOVES, "Cast", "QuantizeLinear", "DequantizeLinear") or not node.inputs:
                return ""
            name = node.inputs[0]
        return ""

    def _find_quantised_dtype(self, node: Node) -> str:
        dtype = self.dtypes.get(node.inputs[0], "")
        if not dtype and len(node.inputs) > 2:
            dtype = self.dtypes.get(node.inputs[2], "")
        return dtype or "int8"


def measure_graph(model: OnnxFile, sizes: Mapping[str, int]) -> tuple[PrecisionShares, float]:
    """Shares, and all multiply-accumulates, of a graph whose file is still there."""
    model = _flatten(model, sizes)
    types = _Types(model)
    types.follow_rows(sizes)
    nodes: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    compute: dict[str, float] = defaultdict(float)
    for weight in model.walk_weights():
        if weight.dtype in _PRECISIONS:
            weights[_PRECISIONS[weight.dtype]] += weight.nbytes
    for node in _list_nodes(model):
        if node.op_type not in _SILENT and (precision := _find_precision(node, types)):
            nodes[precision] += 1
    for _, precision, macs in _list_products(model, types, sizes):
        compute[precision] += macs
    shares = PrecisionShares(nodes=_normalise(nodes), weight_bytes=_normalise(weights), compute=_normalise(compute))
    return shares, sum(compute.values())


def _list_nodes(model: OnnxFile) -> Iterator[Node]:
    return (node for part in _list_parts(model.graph) for node in part.nodes)


def _list_products(model: OnnxFile, types: _Types, sizes: Mapping[str, int]) -> Iterator[tuple[Node, str, float]]:
    """Every product with its precision and its multiply-accumulates."""
    for node in _list_nodes(model):
        counter, precision = MACS.get(node.op_type), _find_precision(node, types)
        if counter is not None and precision and len(node.inputs) > 1 and node.outputs:
            yield node, precision, max(counter(node, lambda name: _resolve(types.shapes.get(name), sizes)), 1.0)


def _normalise(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: value / total for name, value in sorted(amounts.items())} if total else {}


def _find_precision(node: Node, types: _Types) -> str:
    if node.op_type in _INTEGER_PRODUCTS:
        return "int8"
    if node.op_type in MACS:
        stored = {types.find_stored(name) for name in node.inputs[:2]}
        if len(stored) == 1 and "" not in stored:
            return stored.pop()
    dtype = next((types.dtypes[name] for name in node.outputs if types.dtypes.get(name) in _FLOATS), "")
    return _PRECISIONS.get(dtype, "")


def _resolve(shape: Shape | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(s if isinstance(s, int) else sizes.get(s or "", 1) for s in shape or ())
