"""Read the structure of an ONNX file with the standard library alone: nodes, types, weights' names, never their values.

A device that builds engines has TensorRT and numpy and no `onnx` package, yet must refuse a damaged file before a
compiler sees it (TensorRT's parser takes an empty file for an empty network, and any opset for a known one), digest
the external data for the engine's key, and name the torch module of a node that the compiler refused.

An ONNX file is a protobuf message (onnx.proto, v1.23): (tag, value) pairs, where a value is a varint, 4 or 8 bytes, or
a length and that many bytes. Values that are not needed here are skipped, so that gigabytes of weights cost nothing.
"""

from __future__ import annotations

import ast
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from specs.bundle import Manifest, resolve_inside
from specs.errors import BundleError, GraphError

#: TensorProto.DataType -> numpy's name (ml_dtypes' where numpy has none).
DTYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "str", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip

#: Bits of one element, where it is not numpy's own itemsize.
_BITS = {"uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2, "bool": 8, "str": 0}

Buffer = bytes | memoryview
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


def read_onnx(path: Path) -> OnnxFile:
    """Read and check one ONNX file.

    Raises:
        GraphError: the file is missing, not ONNX, truncated, empty of outputs, or its external data is missing,
            too short or outside the file's own folder.
    """
    if not path.is_file():
        raise GraphError("there is no such ONNX file", where=str(path), fix="give the path of a .onnx file")
    if path.stat().st_size == 0:
        raise GraphError("the ONNX file is empty", where=str(path), fix="write or copy it again")
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # closed when the last slice of it is gone
    model = parse_onnx(memoryview(mapped), path)
    _check_external_data(model)
    return model


def parse_onnx(buffer: Buffer, path: Path) -> OnnxFile:
    """The same for bytes; `path` is only named in errors. External data is not looked for."""
    try:
        model = _parse_model(buffer, path)
    except (_Malformed, RecursionError) as error:
        raise GraphError(
            "this is not an ONNX file, or it is truncated",
            where=str(path),
            got=str(error) or "nesting too deep",
            allowed="a serialised onnx.ModelProto",
            fix="export or copy the file again",
        ) from None
    if not model.ir_version or not model.graph.outputs or not model.opsets:
        missing = "a graph with outputs" if model.opsets and model.ir_version else "an IR version and an opset import"
        raise GraphError(
            "this is not an ONNX file, or it is truncated",
            where=str(path),
            got=f"a file without {missing}",
            allowed="a serialised onnx.ModelProto",
            fix="export or copy the file again",
        )
    return model


def require_listed_weights(folder: Path, manifest: Manifest, file: str) -> tuple[str, ...]:
    """The bundle's files that hold the weights of its ONNX file `file`, each listed in the manifest with a digest.

    Raises:
        BundleError: one is not listed. GraphError: as `read_onnx`.
    """
    model = read_onnx(resolve_inside(folder, file))
    files = tuple((PurePosixPath(file).parent / name).as_posix() for name in model.list_external_files())
    for name in files:
        if name not in manifest.files:
            raise BundleError(
                "a file is not listed in the manifest", where=str(folder / name), fix="export the bundle again"
            )
    return files


def _check_external_data(model: OnnxFile) -> None:
    folder = model.path.parent
    sizes: dict[str, int] = {}
    for weight in model.walk_weights():
        if not weight.location:
            continue
        if weight.location not in sizes:
            sizes[weight.location] = _measure_external(model.path, folder, weight.location)
        end = weight.offset + (weight.nbytes if weight.length is None else weight.length)
        if weight.offset < 0 or end > sizes[weight.location] or (weight.length or 0) < 0:
            raise GraphError(
                "an external data file is too short",
                where=str(folder / weight.location),
                got=f"{sizes[weight.location]} bytes",
                allowed=f"{end} bytes or more, for the tensor '{weight.name}'",
                fix="copy the whole model again, or export it again",
            )


def _measure_external(path: Path, folder: Path, location: str) -> int:
    pure = PurePosixPath(location)
    target = folder / location
    bad = pure.is_absolute() or ".." in pure.parts or "\\" in location or "\0" in location
    if bad or not target.resolve().is_relative_to(folder.resolve()):
        raise GraphError(
            f"the ONNX file names external data outside its own folder: {location!r}",
            where=str(path),
            allowed="relative paths below the folder of the ONNX file",
            fix="do not use this file; export the model again",
        )
    if not target.is_file():
        raise GraphError(
            "the external data of this ONNX file is missing",
            where=str(target),
            fix=f"copy '{location}' beside {path.name}: the weights lie in it",
        )
    return target.stat().st_size


def _walk(nodes: tuple[Node, ...]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for body in node.subgraphs:
            yield from _walk(body.nodes)


def _module_of_namespace(namespace: str) -> str:
    """ "": model.Net/encoder: model.Encoder/add: aten.add.Tensor" -> "encoder" (torch.onnx's other way to say it)."""
    names = [part.split(":")[0].strip() for part in namespace.split("/")[:-1]]
    return next((name for name in reversed(names) if name), "")


# The wire format.


class _Malformed(ValueError):
    pass


def _read_varint(buffer: Buffer, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(buffer) or shift > 63:
            raise _Malformed(f"a broken number at byte {at}")
        byte = buffer[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def _read_fields(buffer: Buffer) -> Iterator[tuple[int, int | Buffer]]:
    """(field number, value): an int for varints, a slice for everything else."""
    at, end = 0, len(buffer)
    while at < end:
        tag, at = _read_varint(buffer, at)
        number, kind = tag >> 3, tag & 7
        if number == 0 or kind not in (0, 1, 2, 5):
            raise _Malformed(f"an unknown field before byte {at}")
        if kind == 0:
            value, at = _read_varint(buffer, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _read_varint(buffer, at)
        else:
            size = 8 if kind == 1 else 4
        if at + size > end:
            raise _Malformed(f"{at + size - end} bytes missing at the end")
        yield number, buffer[at : at + size]
        at += size


def _read_message(buffer: int | Buffer) -> Iterator[tuple[int, int | Buffer]]:
    if isinstance(buffer, int):
        raise _Malformed("a number where a message belongs")
    return _read_fields(buffer)


def _text(value: int | Buffer) -> str:
    if isinstance(value, int):
        raise _Malformed("a number where a text belongs")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise _Malformed("a text that is not UTF-8") from None


def _domain(value: int | Buffer) -> str:
    domain = _text(value)
    return "" if domain == "ai.onnx" else domain


def _number(value: int | Buffer) -> int:
    if not isinstance(value, int):
        raise _Malformed("a message where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _numbers(value: int | Buffer) -> list[int]:
    """A repeated int64: one varint, or many packed into one field."""
    if isinstance(value, int):
        return [_number(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _read_varint(value, at)
        found.append(_number(number))
    return found


def _parse_entry(value: int | Buffer) -> tuple[str, str]:
    entry = {number: _text(item) for number, item in _read_message(value) if number in (1, 2)}
    return entry.get(1, ""), entry.get(2, "")


def _parse_model(buffer: Buffer, path: Path) -> OnnxFile:
    ir_version, producer, opsets = 0, "", {}
    graph, functions = GraphPart(), {}
    for number, value in _read_fields(buffer):
        if number == 1:
            ir_version = _number(value)
        elif number == 2:
            producer = _text(value)
        elif number == 7:
            graph = _parse_graph(value)
        elif number == 8:
            found = dict(_read_message(value))
            opsets[_domain(found.get(1, b""))] = _number(found.get(2, 0))
        elif number == 25:
            key, body = _parse_function(value)
            functions[key] = body
    return OnnxFile(
        path=path, ir_version=ir_version, producer=producer, opsets=opsets, graph=graph, functions=functions
    )


def _parse_graph(buffer: int | Buffer) -> GraphPart:
    nodes, inputs, outputs, weights, values = [], [], [], [], []
    for number, value in _read_message(buffer):
        if number == 1:
            nodes.append(_parse_node(value))
        elif number == 5:
            weights.append(_parse_weight(value))
        elif number == 11:
            inputs.append(_parse_value(value))
        elif number == 12:
            outputs.append(_parse_value(value))
        elif number == 13:
            values.append(_parse_value(value))
    stored = {w.name for w in weights}
    return GraphPart(
        nodes=tuple(nodes),
        inputs=tuple(v for v in inputs if v.name not in stored),
        outputs=tuple(outputs),
        weights=tuple(weights),
        values=tuple(values),
    )


def _parse_function(buffer: int | Buffer) -> tuple[tuple[str, str, str], tuple[Node, ...]]:
    name = domain = overload = ""
    nodes = []
    for number, value in _read_message(buffer):
        if number == 1:
            name = _text(value)
        elif number == 7:
            nodes.append(_parse_node(value))
        elif number == 10:
            domain = _text(value)
        elif number == 13:
            overload = _text(value)
    return (domain, name, overload), tuple(nodes)


def _parse_node(buffer: int | Buffer) -> Node:
    texts = {3: "", 4: "", 7: "", 8: ""}
    inputs, outputs, metadata = [], [], {}
    attributes: dict[str, int | str | tuple[int, ...]] = {}
    constants, subgraphs = [], []
    for number, value in _read_message(buffer):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number in texts:
            texts[number] = _text(value)
        elif number == 5:
            name, plain, tensors, graphs = _parse_attribute(value)
            if plain is not None:
                attributes[name] = plain
            constants += tensors
            subgraphs += graphs
        elif number == 9:
            key, text = _parse_entry(value)
            metadata[key] = text
    return Node(
        name=texts[3],
        op_type=texts[4],
        domain="" if texts[7] == "ai.onnx" else texts[7],
        overload=texts[8],
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        attributes=attributes,
        constants=tuple(constants),
        subgraphs=tuple(subgraphs),
        metadata=metadata,
    )


def _parse_attribute(
    buffer: int | Buffer,
) -> tuple[str, int | str | tuple[int, ...] | None, list[Weight], list[GraphPart]]:
    name = ""
    plain: int | str | None = None
    ints: list[int] = []
    tensors, graphs = [], []
    for number, value in _read_message(buffer):
        if number == 1:
            name = _text(value)
        elif number == 3:
            plain = _number(value)
        elif number == 4 and not isinstance(value, int):
            plain = bytes(value).decode("utf-8", "replace")
        elif number == 5:
            tensors.append(_parse_weight(value))
        elif number in (6, 11):
            graphs.append(_parse_graph(value))
        elif number == 8:
            ints += _numbers(value)
    return name, tuple(ints) if ints else plain, tensors, graphs


def _parse_weight(buffer: int | Buffer) -> Weight:
    name, dtype, shape, external = "", "", [], {}
    for number, value in _read_message(buffer):
        if number == 1:
            shape += _numbers(value)
        elif number == 2:
            dtype = DTYPES.get(_number(value), "")
        elif number == 8:
            name = _text(value)
        elif number == 13:
            key, text = _parse_entry(value)
            external[key] = text
    if any(size < 0 for size in shape):
        raise _Malformed(f"a negative size in the tensor '{name}'")
    try:
        offset = int(external.get("offset", "0"))
        length = int(external["length"]) if "length" in external else None
    except ValueError:
        raise _Malformed(f"an offset of the tensor '{name}' that is not a number") from None
    location = external.get("location", "")
    return Weight(name=name, dtype=dtype, shape=tuple(shape), location=location, offset=offset, length=length)


def _parse_value(buffer: int | Buffer) -> Value:
    name, dtype, shape = "", "", None
    for number, value in _read_message(buffer):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for kind, tensor in _read_message(value):
                if kind == 1:
                    dtype, shape = _parse_tensor_type(tensor)
    return Value(name=name, dtype=dtype, shape=shape)


def _parse_tensor_type(buffer: int | Buffer) -> tuple[str, Shape | None]:
    dtype, shape = "", None
    for number, value in _read_message(buffer):
        if number == 1:
            dtype = DTYPES.get(_number(value), "")
        elif number == 2:
            shape = tuple(_parse_dim(dim) for key, dim in _read_message(value) if key == 1)
    return dtype, shape


def _parse_dim(buffer: int | Buffer) -> int | str | None:
    for number, value in _read_message(buffer):
        if number == 1:
            return _number(value)
        if number == 2:
            return _text(value) or None
    return None
