"""What a graph accepts, compiled once, so that a call with shapes seen before costs about a microsecond.

The first call with a set of shapes is checked in full: names, types, ranks, fixed sizes, each dim's range, and that a
dim's name means one size everywhere. Later calls look the shapes up. Values are not looked at: NaN may be data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from engines.runtime.device.views import DeviceView
from specs.bundle import Graph, IoTensor
from specs.errors import BundleError, InputError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_REMEMBERED_SHAPES = 1024


class InputCheck:
    """Raises InputError for a feed that `graph` does not take. Safe to call from several threads."""

    def __init__(self, graph: Graph, dims: Mapping[str, tuple[int, int, int]]) -> None:
        self._graph, self._dims = graph, dims
        self._names = tuple(tensor.name for tensor in graph.inputs)
        self._dtypes = tuple(parse_dtype(tensor, graph) for tensor in graph.inputs)
        self._seen: set[tuple[object, ...]] = set()

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Return when the graph takes `inputs`, raise InputError when it does not."""
        try:
            key = tuple([(value.__class__, value.dtype, value.shape) for value in map(inputs.__getitem__, self._names)])
            if key in self._seen and len(inputs) == len(key):
                return
        except (KeyError, AttributeError, TypeError):
            key = ()
        self._check_names(inputs)
        sizes: dict[str, tuple[int, str]] = {}
        for tensor, dtype in zip(self._graph.inputs, self._dtypes, strict=True):
            value = inputs[tensor.name]
            self._check_type(tensor, dtype, value)
            self._check_shape(tensor, value.shape, sizes)
        if len(self._seen) >= _REMEMBERED_SHAPES:
            self._seen.clear()
        self._seen.add(key)

    def _check_names(self, inputs: Mapping[str, Array]) -> None:
        if not isinstance(inputs, Mapping):
            self._refuse(
                "inputs must be a dict of arrays by name",
                got=type(inputs).__name__,
                allowed=", ".join(self._names),
                fix=f"run({{'{self._names[0] if self._names else 'name'}': array}})",
            )
        for name in self._names:
            if name not in inputs:
                self._refuse(
                    f"input '{name}' is missing",
                    got=", ".join(map(str, inputs)) or "nothing",
                    allowed=", ".join(self._names),
                    fix=f"add '{name}', {self._describe(name)}",
                )
        for name in inputs:
            if name not in self._names:
                self._refuse(
                    f"unknown input '{name}'", allowed=name_nearest(str(name), self._names), fix=f"remove '{name}'"
                )

    def _check_type(self, tensor: IoTensor, dtype: np.dtype[np.generic], value: object) -> None:
        if not isinstance(value, (np.ndarray, DeviceView)):
            self._refuse(
                f"input '{tensor.name}' is no numpy array",
                got=type(value).__name__,
                allowed=self._describe(tensor.name),
                fix=f"np.asarray(value, dtype=np.{dtype})",
            )
        if value.dtype != dtype:
            self._refuse(
                f"input '{tensor.name}' has the wrong dtype",
                got=str(value.dtype) if value.dtype.isnative else f"{value.dtype} (byte-swapped)",
                allowed=str(dtype),
                fix=f"array.astype(np.{dtype})" if isinstance(value, np.ndarray) else f"tensor.to(torch.{dtype})",
            )

    def _check_shape(self, tensor: IoTensor, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
        if len(shape) != len(tensor.shape):
            self._refuse(
                f"input '{tensor.name}' has the wrong rank",
                got=f"{list(shape)}, rank {len(shape)}",
                allowed=f"{self._describe(tensor.name)}, rank {len(tensor.shape)}",
                fix="reshape it, e.g. array[None] adds a batch dimension"
                if len(shape) < len(tensor.shape)
                else "reshape it, e.g. array[0] takes the first axis away",
            )
        for axis, (size, wanted) in enumerate(zip(shape, tensor.shape, strict=True)):
            if isinstance(wanted, int):
                fits, fix = size == wanted, f"make axis {axis} {wanted} long"
            elif wanted in self._dims:
                low, usual, high = self._dims[wanted]
                fits, fix = low <= size <= high, f"keep '{wanted}' in {low}..{high}"
                if size:
                    fix += f", or export with --dim {wanted}={min(low, size)}:{usual}:{max(high, size)}"
            else:
                fits, fix = True, ""
            if not fits:
                self._refuse(
                    f"input '{tensor.name}' has the wrong size on axis {axis}",
                    got=str(list(shape)),
                    allowed=self._describe(tensor.name),
                    fix=fix,
                )
            if isinstance(wanted, str) and wanted:
                before, owner = sizes.setdefault(wanted, (size, tensor.name))
                if before != size:
                    self._refuse(
                        f"dim '{wanted}' has two sizes",
                        got=f"{before} in '{owner}', {size} in '{tensor.name}'",
                        allowed=f"one size for '{wanted}' in every input",
                        fix=f"make them equal: {self._describe(owner)}; {self._describe(tensor.name)}",
                    )

    def _describe(self, name: str) -> str:
        """`float32 [batch, 3, 224, 224], batch 1..32`"""
        tensor = next(t for t in self._graph.inputs if t.name == name)
        named = [d for d in dict.fromkeys(tensor.shape) if isinstance(d, str) and d in self._dims]
        ranges = "".join(f", {d} {self._dims[d][0]}..{self._dims[d][2]}" for d in named)
        return f"{tensor.dtype} [{', '.join(str(d) for d in tensor.shape)}]{ranges}"

    def _refuse(self, problem: str, *, got: str | None = None, allowed: str, fix: str) -> NoReturn:
        raise InputError(problem, where=f"graph '{self._graph.name}'", got=got, allowed=allowed, fix=fix)


def check_output_names(graph: Graph, names: Sequence[str]) -> None:
    """Raises InputError when `names` holds something that is no output of `graph`."""
    known = [tensor.name for tensor in graph.outputs]
    for name in names:
        if name not in known:
            raise InputError(
                f"unknown output '{name}'",
                where=f"graph '{graph.name}'",
                allowed=name_nearest(str(name), known),
                fix="ask for outputs of this graph, or leave `outputs` away for all",
            )


def parse_dtype(tensor: IoTensor, graph: Graph) -> np.dtype[np.generic]:
    """The numpy type of a manifest's tensor; BundleError when numpy has none of that name."""
    try:
        return np.dtype(tensor.dtype)
    except TypeError:
        raise BundleError(
            f"tensor '{tensor.name}' has a dtype that numpy does not know",
            where=f"graph '{graph.name}'",
            got=tensor.dtype,
            allowed="float32, float16, int64, int32, bool and numpy's other names",
            fix="export the bundle again",
        ) from None
