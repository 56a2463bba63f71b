"""Writes initializers to a component's weight pools: each distinct tensor once, whichever graphs use it.

A pool is one file per dtype, `weights.<dtype>.data`, that only grows. Graphs of the component (prefill and decode,
every target, every precision) point into it, so two graphs that share a tensor share its bytes, and a device that
needs only the fp16 graph needs only the fp16 pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from specs.bundle import FileEntry

#: Below this a tensor stays inside the .onnx file, where compilers can fold it without opening another file.
INLINE_BYTES = 1024
_ALIGNMENT_BYTES = 64
_BREATH_BYTES = 64 << 20
_PAGE_BYTES = 4096  # large tensors start on a page, so that a runtime can map them


class WeightPool:
    """The weight files of one component's folder. Not thread safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[tuple[ir.DataType, bytes], tuple[int, int]] = {}  # content -> offset, length
        self._sizes: dict[str, int] = {}
        self._digests: dict[str, hashlib._Hash] = {}

    def store(self, model: ir.Model, *, after_write: Callable[[], None] = lambda: None) -> None:
        """Move the model's initializers of INLINE_BYTES and more into the pools, one tensor in memory at a time.

        Args:
            after_write: called after every _BREATH_BYTES, so that the caller can give memory back.
        """
        written = 0
        for value in _list_initializers(model):
            tensor = value.const_value
            assert tensor is not None
            if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).parent == self.folder:
                continue  # already in a pool of ours: a graph that was read back
            if tensor.nbytes >= INLINE_BYTES and tensor.dtype != ir.DataType.STRING:
                value.const_value = self._place(tensor, value.name or "")
                written += tensor.nbytes
                if written > _BREATH_BYTES:
                    written = 0
                    after_write()
            elif isinstance(tensor, ir.ExternalTensor):  # a small one in a file beside somebody else's model
                value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)

    def list_entries(self) -> dict[str, FileEntry]:
        """Digest and size of every pool, by file name; nothing is read again."""
        return {name: FileEntry(bytes=self._sizes[name], sha256=sha.hexdigest()) for name, sha in self._digests.items()}

    def _place(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        data = _view_bytes(tensor)
        key = (tensor.dtype, hashlib.sha256(data).digest())
        file = f"weights.{tensor.dtype.name.lower()}.data"
        if key not in self._places:
            self._places[key] = (self._append(file, data), len(data))
        offset, length = self._places[key]
        return ir.ExternalTensor(
            file, offset, length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=self.folder
        )

    def _append(self, file: str, data: memoryview | bytes) -> int:
        end = self._sizes.get(file, 0)
        align = _PAGE_BYTES if len(data) >= 1 << 20 else _ALIGNMENT_BYTES
        padding = bytes(-end % align)
        with (self.folder / file).open("ab") as stream:
            stream.write(padding)
            stream.write(data)
        sha = self._digests.setdefault(file, hashlib.sha256())
        sha.update(padding)
        sha.update(data)
        self._sizes[file] = end + len(padding) + len(data)
        return end + len(padding)


def _list_initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *(g for g in model.graph.subgraphs())):
        yield from graph.initializers.values()


def _view_bytes(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """The tensor's little-endian bytes as ONNX stores them, without a copy where its memory already has that form."""
    if tensor.dtype.bitwidth < 8:
        return tensor.tobytes()
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data
