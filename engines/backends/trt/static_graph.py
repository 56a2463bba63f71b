"""A typed ONNX graph with the sizes of its inputs written in, so that its compiler sees constants where it saw shapes.

    input x [batch, 4], {"x": (8, 4)}  =>  input x [8, 4]        everything else, byte for byte, as it was

A device that builds engines has no `onnx` package: of the protobuf message (`engines.onnx_files.protobuf`) only the
shapes of inputs are spelled again, ModelProto.graph (7) .input (11) .type (2) .tensor_type (1) .shape (2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engines.backends.base import InputProfile, Sizes
from engines.onnx_files.protobuf import read_varint

_GRAPH, _INPUT, _NAME, _TYPE, _TENSOR, _SHAPE, _DIM, _DIM_VALUE = 7, 11, 1, 2, 1, 2, 1, 1
_BYTES_FIELD = 2  # the wire type of everything that has a length
_FIXED = {1: 8, 5: 4}


def find_static(*profiles: tuple[InputProfile, ...]) -> dict[str, Sizes]:
    """The one shape of every dynamic input, {} where there are ranges, or nothing is dynamic."""
    given = [profile for profile in profiles if profile]
    if len(given) != 1 or any(one.minimum != one.maximum for one in given[0]):
        return {}
    return {one.name: one.optimum for one in given[0]}


@contextmanager
def write_static(model: Path, shapes: Mapping[str, Sizes], temporary: Path) -> Iterator[Path]:
    """A file beside `model`, where its external data is found, for as long as it is needed; `model` without `shapes`.

    Args:
        temporary: its path. Raises OSError where it cannot be written.
    """
    if not shapes:
        yield model
        return
    try:
        temporary.write_bytes(fix_inputs(model.read_bytes(), shapes))
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def fix_inputs(model: bytes, shapes: Mapping[str, Sizes]) -> bytes:
    """The serialised ModelProto with these shapes of its inputs. `model` is well-formed (`read_onnx` saw it)."""

    def fix(value: bytes) -> bytes:
        name = next((payload.decode() for number, _, payload in _split(value) if number == _NAME), "")
        if name not in shapes:
            return value
        dims = b"".join(_spell(_DIM, _spell_varint(_DIM_VALUE << 3) + _spell_varint(size)) for size in shapes[name])
        return _edit(
            value, _TYPE, lambda kind: _edit(kind, _TENSOR, lambda tensor: _edit(tensor, _SHAPE, lambda _: dims))
        )

    return _edit(model, _GRAPH, lambda graph: _edit(graph, _INPUT, fix))


def _edit(message: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """`message` with `change` applied to every field of that number."""
    return b"".join(
        _spell(number, change(payload)) if found == number else whole for found, whole, payload in _split(message)
    )


def _split(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, the whole field, what a field with a length holds) of every field."""
    at = 0
    while at < len(message):
        start, payload = at, b""
        tag, at = read_varint(message, at)
        if tag & 7 == _BYTES_FIELD:
            size, at = read_varint(message, at)
            payload, at = message[at : at + size], at + size
        elif tag & 7 in _FIXED:
            at += _FIXED[tag & 7]
        else:
            _, at = read_varint(message, at)
        yield tag >> 3, message[start:at], payload


def _spell(number: int, payload: bytes) -> bytes:
    return _spell_varint(number << 3 | _BYTES_FIELD) + _spell_varint(len(payload)) + payload


def _spell_varint(number: int) -> bytes:
    spelled = bytearray()
    while number > 0x7F:
        spelled.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*spelled, number])
