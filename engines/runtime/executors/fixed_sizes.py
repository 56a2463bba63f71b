"""An engine for every size, and faster ones for one size each: a request of exactly those sizes takes the faster one.

batch 1   -> model.batch1.tensorrt.plan        each holds its own weights on the GPU
batch 7   -> model.tensorrt.plan
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specs.bundle import Graph

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.executors.tensorrt import TensorRTEngine
    from engines.runtime.graph_session import Allocate, Execute, View


@dataclass(frozen=True, kw_only=True)
class OpenEngine:
    """What runs a graph, of all sizes or, with `sizes`, of one."""

    execute: Execute
    close: Callable[[], None]
    sizes: Mapping[str, int]
    view: View | None = None  # where it takes arrays on the GPU
    allocate: Allocate | None = None
    engine: TensorRTEngine | None = None  # whose stream the others share, so that one order holds for all of them


def spell_sizes(sizes: Mapping[str, int]) -> str:
    """`batch 1, cache 1024`."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


class SizedEngines:
    """One graph's engines behind one `execute`."""

    def __init__(self, graph: Graph, general: OpenEngine, fixed: Sequence[OpenEngine]) -> None:
        self._general, self._fixed = general, tuple(fixed)
        self._inputs = tuple(tensor.name for tensor in graph.inputs)
        self._by_shapes = {
            tuple(tuple(one.sizes.get(d, d) if isinstance(d, str) else d for d in t.shape) for t in graph.inputs): one
            for one in fixed
        }

    def execute(
        self, names: Sequence[str], feed: Mapping[str, Array], keep: Sequence[str] | None = None
    ) -> Sequence[Array]:
        """The outputs called `names`, by the engine of exactly these shapes where there is one."""
        shapes = tuple([feed[name].shape for name in self._inputs])
        return self._by_shapes.get(shapes, self._general).execute(names, feed, keep)

    def close(self) -> None:
        """Free every engine, the one whose stream is shared at last."""
        for engine in (*self._fixed, self._general):
            engine.close()
