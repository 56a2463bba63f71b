"""How a module computes in float32 while its parameters lie in files, in the type that they are stored in.

    module(x)  --every torch function that takes a Parameter-->  look up | widen, compute  --> pages dropped again

Float16 and bfloat16 parameters are widened for the one call that uses them, exactly: memory holds one widened weight at
a time, and a Linear's large one in pieces. What is looked up (an embedding, a slice) is looked up first and then
widened. While torch.export traces, the same rule records the Casts of the portable graph.

Not here: modules that read `parameter.data`, or write to a parameter: they would see it as it is stored.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from specs.handlers.weights import drop_tensor, lies_in_file
from specs.pages import CHUNK_BYTES, list_file_mappings, trim_heap

_NARROW = (torch.float16, torch.bfloat16)
#: Calls that take a few rows of a parameter: these are widened, not the whole.
_LOOKUPS = (functional.embedding, Tensor.__getitem__)
_READ_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]
_WIDENED_AT_ONCE_BYTES = 256 << 20


def streaming_parameters(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Inside, whatever uses parameters of `module` computes in float32, and keeps few of their pages in memory."""
    return _StreamParameters(module)


@contextlib.contextmanager
def widening_forward(module: nn.Module) -> Iterator[None]:
    """Inside, `module(...)` computes in float32. For torch.export: a plain graph, nothing in it is split or dropped."""
    forward = module.forward

    @functools.wraps(forward)  # torch.export reads the signature
    def run(*args: Any, **kwargs: Any) -> Any:
        with _WidenParameters():  # around the forward only: torch.export itself must see parameters as they are
            return forward(*args, **kwargs)

    module.forward = run
    try:
        yield
    finally:
        del module.forward  # the class's own shows again


class _WidenParameters(TorchFunctionMode):
    """Widens narrow Parameters per call. `compute` is what a subclass adds to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        used = [value for value in _flatten((*args, *kwargs.values())) if isinstance(value, nn.Parameter)]
        if not used:
            return func(*args, **kwargs)
        if func == _READ_DTYPE:
            return _widen_dtype(func(*args))
        if getattr(func, "__name__", "") == "__get__" or func in _LOOKUPS:
            return _widen(func(*args, **kwargs), Tensor)
        return self.compute(func, args, kwargs, used)

    def compute(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], used: list[nn.Parameter]
    ) -> Any:
        return func(*_widen(args), **{name: _widen(value) for name, value in kwargs.items()})


class _StreamParameters(_WidenParameters):
    """Also widens large Linear weights in pieces, and drops the pages of parameters every CHUNK_BYTES."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        mappings = list_file_mappings()
        self.mapped = {id(parameter) for parameter in module.parameters() if lies_in_file(parameter, mappings)}
        self.touched: dict[int, nn.Parameter] = {}

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.drop()

    def compute(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], used: list[nn.Parameter]
    ) -> Any:
        if func is functional.linear and _is_large(args[1]):
            result = _multiply_in_pieces(*args, **kwargs)
        else:
            result = super().compute(func, args, kwargs, used)
        self.touched.update((id(parameter), parameter) for parameter in used if id(parameter) in self.mapped)
        if sum(parameter.nbytes for parameter in self.touched.values()) >= CHUNK_BYTES:
            self.drop()
        return result

    def drop(self) -> None:
        for parameter in self.touched.values():
            drop_tensor(parameter)
        self.touched.clear()
        trim_heap()


def _multiply_in_pieces(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """functional.linear, a few rows of the weight [N, K] widened at a time."""
    rows = max(1, _WIDENED_AT_ONCE_BYTES // (4 * weight.shape[1]))
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    for start in range(0, weight.shape[0], rows):
        piece = weight[start : start + rows]
        out[..., start : start + rows] = functional.linear(x, piece.float())
        if piece.nbytes >= CHUNK_BYTES:
            drop_tensor(piece)
    return out if bias is None else out + _widen(bias, Tensor)


def _is_large(weight: object) -> bool:
    return (
        isinstance(weight, nn.Parameter)
        and weight.dtype in _NARROW
        and weight.dim() == 2
        and 4 * weight.numel() > _WIDENED_AT_ONCE_BYTES
    )


def _widen(value: Any, kind: type[Tensor] = nn.Parameter) -> Any:
    """Narrow tensors of this kind in float32, inside tuples and lists too; everything else as it is."""
    if isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value):
        return type(value)(_widen(part, kind) for part in value)
    if isinstance(value, kind) and value.dtype in _NARROW:
        # not `.float()`: torch.export would record an assertion on the type with it
        return torch.ops.aten._to_copy.default(value, dtype=torch.float32)
    return value


def _widen_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _NARROW else dtype


def _flatten(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flatten(value)
        else:
            yield value
