"""Writes initializers to a component's weight pools: each distinct tensor once, whichever graphs use it.

A pool is one file per dtype, `weights.<dtype>.data`, that only grows. Graphs of the component (prefill and decode,
every target, every precision) point into it, so two graphs that share a tensor share its bytes, and a device that
needs only the fp16 graph needs only the fp16 pool.

A tensor is known again by where it comes from (the same parameter, transposed alike), which costs nothing, or else by
its bytes, compared with those in the file. Bytes pass through in pieces: beside a tensor that has to be transposed or
converted, memory holds one piece.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.derived import find_source, list_steps
from specs.bundle import FileEntry
from specs.system.pages import CHUNK_BYTES, drop_pages, list_file_mappings, trim_heap

#: Below this a tensor stays inside the .onnx file, where compilers can fold it without opening another file.
INLINE_BYTES = 1024
_ALIGNMENT_BYTES = 64
_PAGE_BYTES = 4096  # large tensors start on a page, so that a runtime can map them
_PIECE_BYTES = 1 << 20  # what is written and digested while it lies in the processor's cache
_SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True)
class _Place:
    file: str
    offset: int
    length: int


class WeightPool:
    """The weight files of one component's folder. Not thread safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_origin: dict[Hashable, tuple[_Place, object]] = {}  # with what keeps the origin alive
        self._by_sample: dict[Hashable, list[_Place]] = {}  # may be equal: their bytes decide
        self._sizes: dict[str, int] = {}
        self._digests: dict[str, hashlib._Hash] = {}

    def store(self, model: ir.Model) -> None:
        """Move the model's initializers of INLINE_BYTES and more into the pools, one tensor in memory at a time."""
        for value in _list_initializers(model):
            tensor = value.const_value
            assert tensor is not None
            if self._is_ours(tensor):
                continue  # a graph that was read back
            if tensor.nbytes >= INLINE_BYTES and tensor.dtype != ir.DataType.STRING:
                place = self._place(tensor)
                value.const_value = ir.ExternalTensor(
                    place.file, place.offset, place.length, tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()), name=value.name or "", base_dir=self.folder,
                )  # fmt: skip
            elif isinstance(tensor, ir.ExternalTensor):  # a small one in a file beside somebody else's model
                value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)

    def list_entries(self) -> dict[str, FileEntry]:
        """Digest and size of every pool, by file name; nothing is read again."""
        return {name: FileEntry(bytes=self._sizes[name], sha256=sha.hexdigest()) for name, sha in self._digests.items()}

    def _is_ours(self, tensor: ir.TensorProtocol) -> bool:
        return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).parent == self.folder

    def _place(self, tensor: ir.TensorProtocol) -> _Place:
        origin, alive = _find_origin(tensor)
        if origin is not None and origin in self._by_origin:
            return self._by_origin[origin][0]
        data = _view_bytes(tensor)
        file = f"weights.{tensor.dtype.name.lower()}.data"
        sample = (file, len(data), zlib.crc32(data[:_SAMPLE_BYTES]), zlib.crc32(data[-_SAMPLE_BYTES:]))
        alike = self._by_sample.setdefault(sample, [])
        place = next((known for known in alike if self._holds(known, data)), None)
        if place is None:
            place = _Place(file, self._append(file, data), len(data))
            alike.append(place)
        if origin is not None:
            self._by_origin[origin] = place, alive
        _give_back(tensor, data)
        return place

    def _holds(self, place: _Place, data: memoryview) -> bool:
        with (self.folder / place.file).open("rb") as stream:
            stream.seek(place.offset)
            return all(stream.read(len(piece)) == piece for piece in _split(data))

    def _append(self, file: str, data: memoryview) -> int:
        end = self._sizes.get(file, 0)
        padding = bytes(-end % (_PAGE_BYTES if len(data) >= 1 << 20 else _ALIGNMENT_BYTES))
        sha = self._digests.setdefault(file, hashlib.sha256())
        with (self.folder / file).open("ab") as stream:
            _write_piece(stream, sha, memoryview(padding))
            droppable = _lies_in_file(data)
            for start, piece in zip(range(0, len(data), _PIECE_BYTES), _split(data), strict=True):
                _write_piece(stream, sha, piece)
                if droppable and (start + len(piece)) % CHUNK_BYTES == 0:
                    drop_pages(_find_address(data) + start + len(piece) - CHUNK_BYTES, CHUNK_BYTES)
        self._sizes[file] = end + len(padding) + len(data)
        return end + len(padding)


def _write_piece(stream: BinaryIO, sha: hashlib._Hash, piece: memoryview) -> None:
    stream.write(piece)
    sha.update(piece)


def _split(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]


def _list_initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *(g for g in model.graph.subgraphs())):
        yield from graph.initializers.values()


def _find_origin(tensor: ir.TensorProtocol) -> tuple[Hashable | None, object]:
    """What the tensor's bytes follow from, when that can be told without reading them; and what keeps it alive."""
    source, steps = find_source(tensor), list_steps(tensor)
    if isinstance(source, ir.ExternalTensor):
        return (str(source.path), source.offset, source.length, source.dtype, steps), None
    raw: Any = getattr(source, "raw", None)
    if type(source).__name__ != "TorchTensor" or not raw.is_contiguous():
        return None, None
    # as long as the pool holds the storage, no other tensor can come to lie at this address
    return (raw.data_ptr(), tuple(raw.shape), source.dtype, steps), raw.untyped_storage()


def _view_bytes(tensor: ir.TensorProtocol) -> memoryview:
    """The tensor's little-endian bytes as ONNX stores them, without a copy where its memory already has that form."""
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data


def _give_back(tensor: ir.TensorProtocol, data: memoryview) -> None:
    """Drop the pages that were read, and the heap that held what was computed from them."""
    source = find_source(tensor)
    if source.nbytes < _PAGE_BYTES:
        return
    array = source.numpy()  # mapped, as it was when it was read
    if source is not tensor and array.flags.c_contiguous and source.dtype.bitwidth >= 8:
        whole = array.reshape(-1).view(np.uint8).data
        if _lies_in_file(whole):
            drop_pages(_find_address(whole), len(whole))
    if _lies_in_file(data):
        drop_pages(_find_address(data), len(data))
    if source.nbytes >= CHUNK_BYTES:
        trim_heap()


def _find_address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data if len(data) else 0


def _lies_in_file(data: memoryview) -> bool:
    if len(data) < _PIECE_BYTES:
        return False
    start = _find_address(data)
    return any(first <= start and start + len(data) <= last for first, last in list_file_mappings())
