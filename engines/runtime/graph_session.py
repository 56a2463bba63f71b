"""One graph ready to run, whatever backend runs it.

Not here: which backend that is (`session.load` chooses), nor host loops over several graphs (`pipelines/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from engines.runtime.checks import InputCheck, check_output_names
from specs.bundle import Graph
from specs.errors import InputError, MetagenError, ParityError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

    Execute = Callable[[Sequence[str], Mapping[str, Array]], Sequence[Array]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs one graph, and why nothing better does."""

    graph: str
    file: str
    backend: str
    precision: str
    passed_over: tuple[str, ...] = ()  # "file on backend: reason", best first
    other_precisions: tuple[str, ...] = ()  # that this backend could run as well, when asked for
    fixed: tuple[str, ...] = ()  # "batch 1: file", engines that requests of exactly these sizes take

    def __str__(self) -> str:
        also = f" (also there: {', '.join(self.other_precisions)})" if self.other_precisions else ""
        lines = [f"{self.graph}: {self.file} on {self.backend}, {self.precision}{also}"]
        lines += [f"  {engine}" for engine in self.fixed]
        return "\n".join([*lines, *(f"  not {reason}" for reason in self.passed_over)])


class GraphSession:
    """One graph ready to run. `graph` tells its inputs and outputs, `choice` what runs it."""

    def __init__(
        self,
        graph: Graph,
        dims: Mapping[str, tuple[int, int, int]],
        *,
        choice: Choice,
        execute: Execute,
        close: Callable[[], None],
    ) -> None:
        self.graph, self.dims, self.choice = graph, dims, choice
        self._output_names = [tensor.name for tensor in graph.outputs]
        self._check = InputCheck(graph, dims).check
        self._execute, self._close = execute, close

    @property
    def label(self) -> str:
        """The precision and the backend, for a row of a table."""
        return f"{self.choice.precision} on {self.choice.backend}"

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None, *, check_finite: bool = False
    ) -> dict[str, Array]:
        """Run the graph.

        Args:
            inputs: an array for every input, of exactly the graph's dtype and of a shape inside its ranges.
            outputs: names wanted; all by default.
            check_finite: raise ParityError when a floating-point output holds NaN or Inf.

        Raises:
            InputError: names, dtypes, shapes or sizes that the graph does not take.
        """
        self._check(inputs)
        names = self._output_names
        if outputs is not None:
            check_output_names(self.graph, outputs)
            names = list(outputs)
        try:
            results = dict(zip(names, self._execute(names, inputs), strict=True))
        except MetagenError:
            raise
        except Exception as error:  # backends share no base class; the cause stays attached
            raise InputError(
                f"{self.choice.backend} could not run these inputs",
                where=f"graph '{self.graph.name}'",
                got=", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items()),
                fix=f"the backend says: {error}",
            ) from error
        if check_finite:
            self._refuse_non_finite(results)
        return results

    def _refuse_non_finite(self, results: Mapping[str, Array]) -> None:
        for name, value in results.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ParityError(
                    f"output '{name}' holds NaN or Inf",
                    where=f"graph '{self.graph.name}', {self.choice.file} on {self.choice.backend}",
                    got=f"{np.count_nonzero(~np.isfinite(value))} of {value.size} elements",
                    fix="metagen-deploy check BUNDLE names the first tensor that is wrong",
                )

    def close(self) -> None:
        """Release the backend; later runs raise InputError."""
        self._execute = _refuse_closed
        self._close()
        self._close = do_nothing


def do_nothing() -> None:
    """ONNX Runtime frees a session with its last reference."""


def _refuse_closed(names: Sequence[str], feed: Mapping[str, Array]) -> NoReturn:
    raise InputError("this session is closed", fix="open the bundle again with load(...)")
