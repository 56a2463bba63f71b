"""What an ONNX file says of itself, as plain values: nodes, tensors' names, types and shapes, never weights' values."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: TensorProto.DataType -> numpy's name (ml_dtypes' where numpy has none).
DTYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "str", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip

#: Bits of one element, where it is not numpy's own itemsize.
_BITS = {"uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2, "bool": 8, "str": 0}

_HALVES = ("float16", "bfloat16")

Shape = tuple[int | str | None, ...]  # a size, the name of a dimension, or an unnamed unknown one


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor's name, type ("" when unknown) and shape (None when unknown)."""

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True, kw_only=True)
class Weight:
    """An initializer; `location` is the external file it lies in, "" when its bytes are in the ONNX file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str = ""
    offset: int = 0
    length: int | None = None

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return (count * count_bits(self.dtype) + 7) // 8


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator. `attributes` holds ints, lists of ints and strings; `subgraphs` the bodies of If, Loop and Scan."""

    name: str
    op_type: str
    domain: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | str | tuple[int, ...]]
    constants: tuple[Weight, ...]
    subgraphs: tuple[GraphPart, ...]
    metadata: Mapping[str, str]

    @property
    def module_path(self) -> str:
        """The torch module this node was traced from ("encoder.layers.0.attention"), "" when the file does not say."""
        scopes = self.metadata.get("pkg.torch.onnx.name_scopes", "")
        try:
            names = ast.literal_eval(scopes) if scopes else []
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            names = []
        modules = [n for n in names[:-1] if isinstance(n, str) and n] if isinstance(names, list) else []
        return modules[-1] if modules else _module_of_namespace(self.metadata.get("namespace", ""))


@dataclass(frozen=True, kw_only=True)
class GraphPart:
    """A graph, or the body of a control-flow node."""

    nodes: tuple[Node, ...] = ()
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    weights: tuple[Weight, ...] = ()
    values: tuple[Value, ...] = ()  # types of the tensors between


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """What one ONNX file says of itself."""

    path: Path
    ir_version: int
    producer: str
    opsets: Mapping[str, int]  # domain -> version; "" is the standard one
    graph: GraphPart
    functions: Mapping[tuple[str, str, str], tuple[Node, ...]] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Version of the standard operators, 0 when the file imports none."""
        return self.opsets.get("", 0)

    def walk_nodes(self) -> Iterator[Node]:
        """Every node: of the graph, of the bodies inside it, and of the functions."""
        yield from _walk(self.graph.nodes)
        for body in self.functions.values():
            yield from _walk(body)

    def has_halves(self) -> bool:
        """Whether float16 or bfloat16 is more than how weights are stored: an input, or what a node makes."""
        return any(value.dtype in _HALVES for value in self.graph.inputs) or any(
            DTYPES.get(kind) in _HALVES
            for node in self.walk_nodes()
            for kind in (node.attributes.get("to"), node.attributes.get("dtype"))
            if isinstance(kind, int)
        )

    def walk_weights(self) -> Iterator[Weight]:
        """Every stored tensor: initializers of all graphs, and the tensors of Constant nodes."""
        yield from self.graph.weights
        for node in self.walk_nodes():
            yield from node.constants
            for body in node.subgraphs:
                yield from body.weights

    def list_external_files(self) -> tuple[str, ...]:
        """The external data files it names, each once, as written."""
        return tuple(sorted({w.location for w in self.walk_weights() if w.location}))


def count_bits(dtype: str) -> int:
    """Bits of one element of a dtype named as in DTYPES."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = "".join(c for c in dtype.split("_", maxsplit=1)[0] if c.isdigit())
    return int(digits) if digits else 0


def _walk(nodes: tuple[Node, ...]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for body in node.subgraphs:
            yield from _walk(body.nodes)


def _module_of_namespace(namespace: str) -> str:
    """ "": model.Net/encoder: model.Encoder/add: aten.add.Tensor" -> "encoder" (torch.onnx's other way to say it)."""
    names = [part.split(":")[0].strip() for part in namespace.split("/")[:-1]]
    return next((name for name in reversed(names) if name), "")
