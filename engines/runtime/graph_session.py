"""One graph ready to run, whatever backend runs it.

    numpy arrays in -> numpy arrays out
    any array on the GPU among them -> read where it lies, and the outputs stay there   TensorRT; refused by others
    keep=[names] -> those outputs stay on the GPU, the others come to the host          TensorRT; others keep nothing

Not here: which backend that is (`session.load` chooses), nor host loops over several graphs (`pipelines/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from engines.runtime.checks import InputCheck, check_output_names
from engines.runtime.device.arrays import DeviceArray
from engines.runtime.device.views import is_device_array
from specs.bundle import Graph
from specs.errors import InputError, MetagenError, ParityError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

    #: Names of outputs and a feed; with `view`, also names of outputs to leave on the GPU.
    Execute = Callable[..., Sequence[Any]]
    View = Callable[[str, object], object]
    Allocate = Callable[[str, tuple[int, ...]], Array]


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
    reason: str = ""  # why this one: what it was compared with on this machine

    def __str__(self) -> str:
        also = f" (also there: {', '.join(self.other_precisions)})" if self.other_precisions else ""
        lines = [f"{self.graph}: {self.file} on {self.backend}, {self.precision}{also}"]
        lines += [f"  {engine}" for engine in self.fixed]
        if self.reason:
            lines.append(f"  because {self.reason}")
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
        view: View | None = None,
        allocate: Allocate | None = None,
        fixed_sizes: Sequence[Mapping[str, int]] = (),
    ) -> None:
        self.graph, self.dims, self.choice = graph, dims, choice
        #: Sizes that an engine of its own serves faster, as `build --fixed` made them.
        self.fixed_sizes = tuple(fixed_sizes)
        self._view, self._allocate = view, allocate
        self._output_names = [tensor.name for tensor in graph.outputs]
        self._check = InputCheck(graph, dims).check
        self._execute, self._close = execute, close

    @property
    def label(self) -> str:
        """The precision and the backend, for a row of a table."""
        return f"{self.choice.precision} on {self.choice.backend}"

    @property
    def takes_device_arrays(self) -> bool:
        """Whether inputs may lie on the GPU, and outputs be kept there."""
        return self._view is not None

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        keep: Sequence[str] | None = None,
        check_finite: bool = False,
    ) -> dict[str, Array]:
        """Run the graph.

        Args:
            inputs: an array for every input, of exactly the graph's dtype and of a shape inside its ranges. On the host
                a numpy array, contiguous or not. On the GPU, where TensorRT runs the graph, any array with `__dlpack__`
                or `__cuda_array_interface__` (torch, cupy, a DeviceArray), contiguous: it is not copied.
            outputs: names wanted; all by default.
            keep: names of outputs to leave on the GPU; the others come as numpy arrays. By default all where any input
                is on the GPU, else none. A backend of the host keeps none, whatever is asked.
            check_finite: raise ParityError when a floating-point output holds NaN or Inf; fetches outputs from the GPU.

        Returns:
            New numpy arrays; a `DeviceArray`, whatever the type says, for each output that stays on the GPU.

        Raises:
            InputError: names, dtypes, shapes or sizes that the graph does not take, or an array that it cannot read.
            PreflightError: the GPU has no room for these sizes. The session can be used on after any of these.
        """
        for value in inputs.values() if hasattr(inputs, "values") else ():  # what is no dict is refused below
            if value.__class__ is not np.ndarray:
                inputs = self._view_inputs(inputs)
                break
        self._check(inputs)
        names = self._output_names
        if outputs is not None:
            check_output_names(self.graph, outputs)
            names = list(outputs)
        if keep is not None:
            check_output_names(self.graph, keep)
        try:
            if keep is None or self._view is None:
                found = self._execute(names, inputs)
            else:
                found = self._execute(names, inputs, keep)
            results = dict(zip(names, found, strict=True))
        except MetagenError:
            raise
        except Exception as error:  # backends share no base class; the cause stays attached
            given = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise InputError(
                f"{self.choice.backend} could not run these inputs",
                where=f"graph '{self.graph.name}'",
                got=f"{given}; the backend says: {error}",
                fix="correct their values: an id below the vocabulary's size, a length within its sequence",
            ) from error
        if check_finite:
            self._refuse_non_finite(results)
        return results

    def allocate_inputs(self, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
        """Arrays for every input, to be filled and handed to `run` again and again.

        Where TensorRT runs the graph they lie in pinned memory, from which the GPU copies without a detour: that saves
        a copy of every input on the host. Their values are anything at first.

        Args:
            sizes: size of each dim by name; its usual one for those left away.

        Raises:
            InputError: a dim that the graph does not have, or a size outside its range.
        """
        sizes = {**{name: usual for name, (_, usual, _) in self.dims.items()}, **(sizes or {})}
        for name, size in sizes.items():
            low, _, high = self.dims.get(name, (0, 0, -1))
            if not low <= size <= high:
                raise InputError(
                    f"dim '{name}' cannot be {size}",
                    where=f"graph '{self.graph.name}'",
                    allowed=", ".join(f"{dim} {low}..{high}" for dim, (low, _, high) in self.dims.items()) or "no dim",
                    fix="choose a size of its range, or export with a wider one: --dim NAME=MIN:OPT:MAX",
                )
        made = {}
        for tensor in self.graph.inputs:
            unknown = [dim for dim in tensor.shape if isinstance(dim, str) and dim not in sizes]
            if unknown:
                raise InputError(
                    f"the size of '{unknown[0]}' is needed for input '{tensor.name}'",
                    fix=f"sizes={{'{unknown[0]}': 1}}",
                )
            shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
            made[tensor.name] = self._allocate(tensor.name, shape) if self._allocate else np.empty(shape, tensor.dtype)
        return made

    def _view_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The same with arrays on the GPU as the backend takes them; what is none is left to the check of inputs."""
        viewed = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                continue
            try:
                viewed[name] = self._view(name, value) if self._view else self._refuse_device_array(name, value)
            except InputError:
                if is_device_array(value):
                    raise
        return viewed

    def _refuse_device_array(self, name: str, value: object) -> object:
        if is_device_array(value):
            raise InputError(
                f"input '{name}' is on the GPU, and {self.choice.backend} takes arrays of the host",
                where=f"graph '{self.graph.name}'",
                got=f"{type(value).__module__}.{type(value).__qualname__}",
                allowed="numpy arrays; with a TensorRT engine also arrays on the GPU",
                fix="copy it: tensor.cpu().numpy(), cupy.asnumpy(array) or array.to_numpy()",
            )
        return value

    def _refuse_non_finite(self, results: Mapping[str, Any]) -> None:
        for name, result in results.items():
            value = result.to_numpy() if isinstance(result, DeviceArray) else result
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ParityError(
                    f"output '{name}' holds NaN or Inf",
                    where=f"graph '{self.graph.name}', {self.choice.file} on {self.choice.backend}",
                    got=f"{np.count_nonzero(~np.isfinite(value))} of {value.size} elements",
                    fix="metagen-deploy check BUNDLE names the first tensor that is wrong",
                )

    def close(self) -> None:
        """Release the backend; later runs raise InputError."""
        self._execute = self._view = self._allocate = _refuse_closed
        self._close()
        self._close = do_nothing


def do_nothing() -> None:
    """ONNX Runtime frees a session with its last reference."""


def _refuse_closed(*_: object) -> NoReturn:
    raise InputError("this session is closed", fix="open the bundle again with load(...)")
