"""Any .onnx file -> onnx_ir.Model, or a GraphError that says what is wrong with the file.

Large weights stay where they are (external data is memory-mapped), so that reading costs nothing per gigabyte. What a
later stage could trip over is found here: a truncated file, an opset nobody reads, names that are defined twice,
missing or short external data, data outside the model's folder, operators that nothing defines.

Not here: what is merely said in an unusual way (`normalize`), and what a target cannot do (`passes`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import uses_external_data

from exporters.onnx_models.function_sizes import require_finite_functions
from exporters.onnx_models.normalize import list_inner_tensors, list_nodes, normalize
from exporters.onnx_models.zip_maps import remove_zip_maps, require_no_maps
from specs.errors import GraphError

OLDEST_OPSET = 7
_DATA_TYPES = {value for value in onnx.TensorProto.DataType.values() if value != onnx.TensorProto.UNDEFINED}
_MOST_NAMED = 5
_LONGEST_NAME = 60_000  # bytes: an .npz keeps arrays under the names of inputs and outputs, at most 65535 long
_SMALL_BYTES = 1 << 12  # weights up to this size go through onnx's checker

#: Domains whose operators a runtime may know without a body in the file; their operators are not listed here.
_RUNTIME_DOMAINS = (
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that was read: `runnable` is the file itself, or its changed bytes.

    These are run where no runtime takes the file as it is, or where what it answers is no tensor.
    """

    path: Path
    model: ir.Model
    runnable: Path | bytes
    notes: tuple[str, ...]


def read_model(path: Path) -> ir.Model:
    """The model of `read_source`."""
    return read_source(path).model


def read_source(path: Path) -> Source:
    """Read and check one ONNX file.

    Raises:
        GraphError: not a file, not ONNX, truncated, of an unsupported opset, invalid, or with unusable external data.
    """
    proto = _parse(path)
    _require_text(path, proto)
    _require_opset(path, proto)
    for tensor in (*proto.graph.initializer, *list_inner_tensors(proto)):
        _require_type(path, tensor)
        if uses_external_data(tensor):
            _require_data(path, tensor)
    names = [node.name for node in list_nodes(proto)]
    changed = remove_zip_maps(proto)
    require_no_maps(path, proto)
    notes = changed + normalize(path, proto)
    repaired = bool(changed) or max(Counter(filter(None, names)).values(), default=1) > 1
    _require_interface(path, proto)
    _require_operators(path, proto)
    require_finite_functions(path, proto)
    _require_valid(path, proto)
    try:
        model = ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, KeyError) as error:
        raise _invalid(path, _root_cause(error)) from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    runnable = proto.SerializeToString() if repaired else path
    return Source(path=path, model=model, runnable=runnable, notes=tuple(notes))


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise GraphError(
            "no such ONNX file" if not path.exists() else "this is not a file",
            where=str(path),
            fix="check the path",
        )
    if path.stat().st_size == 0:
        raise GraphError("the ONNX file is empty", where=str(path), fix="copy or export it again")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise GraphError(
            "the file is not ONNX, or it was truncated", where=str(path), got=_first_line(error), fix="export it again"
        ) from None
    except OSError as error:
        raise GraphError(
            "the file cannot be read",
            where=str(path),
            got=str(error),
            fix="check the path and its permissions",
        ) from None
    if not proto.HasField("graph") or (not proto.graph.node and not proto.graph.output):
        raise GraphError("the file holds no ONNX graph", where=str(path), fix="give an .onnx file, complete")
    return proto


def _require_opset(path: Path, proto: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions and not any(entry.domain for entry in proto.opset_import):
        raise GraphError("the model imports no opset", where=str(path), fix="export it again")
    for version in versions:
        if not OLDEST_OPSET <= version <= newest:
            raise GraphError(
                f"opset {version} is not supported",
                where=str(path),
                allowed=f"opset {OLDEST_OPSET} to {newest}",
                fix="export the model again, or convert it with onnx.version_converter",
            )


def _require_interface(path: Path, proto: onnx.ModelProto) -> None:
    """Inputs of a known rank, and outputs that can be told apart."""
    for value in proto.graph.input:
        kind = value.type
        if kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape"):
            raise GraphError(
                f"input '{value.name}' does not say how many dimensions it has",
                where=str(path),
                allowed="a shape for every input; its sizes may be unknown",
                fix="export it again with shapes, or write one into graph.input[i].type.tensor_type.shape",
            )
    for value in (*proto.graph.input, *proto.graph.output):
        if len(value.name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
            raise GraphError(
                f"a name of {len(value.name)} characters is too long for an input or an output",
                where=str(path),
                got=f"'{value.name[:40]}…'",
                allowed=f"up to {_LONGEST_NAME} bytes",
                fix="rename it with an Identity node",
            )
    for name, count in Counter(value.name for value in proto.graph.output).items():
        if count > 1:
            raise GraphError(
                f"{count} outputs are called '{name}'",
                where=str(path),
                allowed="every output once",
                fix="remove the repetition, or give it a name of its own with an Identity node",
            )


def _require_operators(path: Path, proto: onnx.ModelProto) -> None:
    """Operators of a domain that no runtime here knows need a function body in the file."""
    bodies = {(function.domain, function.name) for function in proto.functions}
    unknown = [
        f"{node.domain}::{node.op_type} '{node.name or (node.output[0] if node.output else '')}'"
        for node in list_nodes(proto)
        if node.domain not in _RUNTIME_DOMAINS and (node.domain, node.op_type) not in bodies
    ]
    if unknown:
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        raise GraphError(
            f"{len(unknown)} nodes are of operators that nothing defines"
            if len(unknown) > 1
            else "a node is of an operator that nothing defines",
            where=str(path),
            got=", ".join(unknown[:_MOST_NAMED]) + more,
            allowed="standard ONNX, ONNX Runtime's contrib operators, and functions with a body in the file",
            fix="export the model with standard operators, or add the operator's body as a local function",
        )


def _require_text(path: Path, message: Message) -> None:
    """Names are UTF-8; protobuf hands on what is not as bytes, which every later stage would trip over."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in (value,) if isinstance(value, (str, bytes, Message)) else value:
            if isinstance(item, Message):
                _require_text(path, item)
            elif isinstance(item, bytes):
                raise _invalid(path, f"a {field.name} of a {message.DESCRIPTOR.name} that is not UTF-8")


def _require_type(path: Path, tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in _DATA_TYPES:
        raise _invalid(path, f"'{tensor.name}' has the data type {tensor.data_type}, which ONNX has not")
    if any(size < 0 for size in tensor.dims):
        raise _invalid(path, f"'{tensor.name}' has the shape {list(tensor.dims)}")


def _require_data(path: Path, tensor: onnx.TensorProto) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    inside = location and "\0" not in location and not Path(location).is_absolute() and ".." not in Path(location).parts
    target = path.parent / location if inside else path
    if not inside or not target.resolve().is_relative_to(path.parent.resolve()):
        raise GraphError(
            f"the data of '{tensor.name}' lies outside the model's folder",
            where=str(path),
            got=repr(location),
            fix="keep it beside the .onnx file, and its location relative",
        )
    if not target.is_file():
        raise GraphError(
            f"the file with the data of '{tensor.name}' is missing",
            where=str(target),
            fix="copy it beside the .onnx file",
        )
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else _count_bytes(tensor)
    except ValueError as error:
        raise GraphError(
            f"the place of the data of '{tensor.name}' is malformed",
            where=str(path),
            got=str(error),
            fix="export the file again",
        ) from None
    size = target.stat().st_size
    if offset < 0 or length < _count_bytes(tensor) or offset + length > size:
        raise GraphError(
            f"the data of '{tensor.name}' is truncated",
            where=str(target),
            got=f"{size} bytes",
            allowed=f"bytes {offset} to {offset + max(length, _count_bytes(tensor))}",
            fix="copy the data file again",
        )


def _count_bytes(tensor: onnx.TensorProto) -> int:
    bits: int = ir.DataType(tensor.data_type).bitwidth
    return (math.prod(int(size) for size in tensor.dims) * bits + 7) // 8


def _require_valid(path: Path, proto: onnx.ModelProto) -> None:
    """onnx's checker on the graph alone: large weights are replaced by inputs, their sizes are checked here."""
    for tensor in proto.graph.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != _count_bytes(tensor):
            raise _invalid(path, f"'{tensor.name}': {len(tensor.raw_data)} bytes, its shape has {_count_bytes(tensor)}")
    try:
        onnx.checker.check_model(_leave_out_weights(proto))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise _invalid(path, _join_context(error)) from None


def _leave_out_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = proto.graph
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(value for value in graph.output if not _lacks_shape(value))
    light.graph.value_info.extend(graph.value_info)
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if not uses_external_data(tensor) and tensor.ByteSize() <= _SMALL_BYTES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(kind)
    return light


def _lacks_shape(value: onnx.ValueInfoProto) -> bool:
    """The checker wants a shape; runtimes do not, and the model's own answer has one."""
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def _invalid(path: Path, got: str) -> GraphError:
    return GraphError("the file is not a valid ONNX model", where=str(path), got=got, fix="export it again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _join_context(error: BaseException) -> str:
    """What onnx's checker found, and of which node: that stands on another line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    context = next((line.removeprefix("==> Context: ") for line in lines if line.startswith("==> Context: ")), "")
    return "; ".join(filter(None, [_first_line(error), context]))


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)
