"""ONNX's bytes -> records, with the standard library alone.

An ONNX file is a protobuf message (onnx.proto, v1.23): (tag, value) pairs, where a value is a varint, 4 or 8 bytes, or
a length and that many bytes. Values that are not needed here are skipped, so that gigabytes of weights cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engines.onnx_files.records import DTYPES, GraphPart, Node, OnnxFile, Shape, Value, Weight

Buffer = bytes | memoryview


class MalformedError(ValueError):
    pass


def read_varint(buffer: Buffer, at: int) -> tuple[int, int]:
    """A number of 64 bits at `at`, and where the next field begins. Raises MalformedError."""
    result = shift = 0
    while True:
        if at >= len(buffer) or shift > 63:
            raise MalformedError(f"a broken number at byte {at}")
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
        tag, at = read_varint(buffer, at)
        number, kind = tag >> 3, tag & 7
        if number == 0 or kind not in (0, 1, 2, 5):
            raise MalformedError(f"an unknown field before byte {at}")
        if kind == 0:
            value, at = read_varint(buffer, at)
            yield number, value
            continue
        if kind == 2:
            size, at = read_varint(buffer, at)
        else:
            size = 8 if kind == 1 else 4
        if at + size > end:
            raise MalformedError(f"{at + size - end} bytes missing at the end")
        yield number, buffer[at : at + size]
        at += size


def _read_message(buffer: int | Buffer) -> Iterator[tuple[int, int | Buffer]]:
    if isinstance(buffer, int):
        raise MalformedError("a number where a message belongs")
    return _read_fields(buffer)


def _text(value: int | Buffer) -> str:
    if isinstance(value, int):
        raise MalformedError("a number where a text belongs")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("a text that is not UTF-8") from None


def _domain(value: int | Buffer) -> str:
    domain = _text(value)
    return "" if domain == "ai.onnx" else domain


def _number(value: int | Buffer) -> int:
    if not isinstance(value, int):
        raise MalformedError("a message where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _numbers(value: int | Buffer) -> list[int]:
    """A repeated int64: one varint, or many packed into one field."""
    if isinstance(value, int):
        return [_number(value)]
    found, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        found.append(_number(number))
    return found


def _parse_entry(value: int | Buffer) -> tuple[str, str]:
    entry = {number: _text(item) for number, item in _read_message(value) if number in (1, 2)}
    return entry.get(1, ""), entry.get(2, "")


def parse_model(buffer: Buffer, path: Path) -> OnnxFile:
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
        raise MalformedError(f"a negative size in the tensor '{name}'")
    try:
        offset = int(external.get("offset", "0"))
        length = int(external["length"]) if "length" in external else None
    except ValueError:
        raise MalformedError(f"an offset of the tensor '{name}' that is not a number") from None
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
