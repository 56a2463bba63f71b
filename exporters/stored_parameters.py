"""How a module computes in float32 or float64 while its parameters lie in files, in the type that they are stored in.

    module(x)  --every torch function that takes a Parameter-->  look up | widen, compute  --> pages dropped again

Narrower parameters are widened for the one call that uses them, exactly: memory holds one widened weight at a time, and
a Linear's large one in pieces. What is looked up (an embedding, a slice) is looked up first and then widened. While
torch.export traces, the same rule records the Casts of the portable graph. For float64 the module's buffers are widened
too, as `module.double()` would, and its inputs are the caller's.

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

from specs.parameters.mapped import drop_tensor, lies_in_file
from specs.system.pages import CHUNK_BYTES, drop_pages, list_file_mappings, trim_heap

_HALVES = (torch.float16, torch.bfloat16)
#: What is widened, by the type that is computed in.
_NARROWER = {torch.float32: _HALVES, torch.float64: (*_HALVES, torch.float32)}
#: Calls that take a few rows of a parameter: these are widened, not the whole.
_LOOKUPS = (functional.embedding, Tensor.__getitem__)
_READ_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]
_WIDENED_AT_ONCE_BYTES = 256 << 20


def streaming_parameters(
    module: nn.Module, dtype: torch.dtype = torch.float32
) -> contextlib.AbstractContextManager[Any]:
    """Inside, whatever uses parameters of `module` computes in `dtype`, and keeps few of their pages in memory.

    Args:
        dtype: float32 or float64; for float64 the inputs of `module` have to be float64 too.
    """
    return _StreamParameters(module, dtype)


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
    """Widens narrower Parameters per call. `compute` is what a subclass adds to."""

    def __init__(self, dtype: torch.dtype = torch.float32, buffers: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.dtype, self.narrower = dtype, _NARROWER[dtype]
        self.buffers = {id(buffer): buffer for buffer in buffers if buffer.dtype in self.narrower}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        used = [value for value in _flatten((*args, *kwargs.values())) if self.is_stored(value)]
        if not used:
            return func(*args, **kwargs)
        if func == _READ_DTYPE:
            return self.dtype if used[0].dtype in self.narrower else used[0].dtype
        if getattr(func, "__name__", "") == "__get__" or func in _LOOKUPS:
            return self.widen(func(*args, **kwargs), every=True)
        return self.compute(func, args, kwargs, used)

    def compute(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], used: list[Tensor]
    ) -> Any:
        return func(*self.widen(args), **{name: self.widen(value) for name, value in kwargs.items()})

    def is_stored(self, value: object) -> bool:
        """Whether this is one of the module's own tensors."""
        return isinstance(value, nn.Parameter) or id(value) in self.buffers

    def widen(self, value: Any, *, every: bool = False) -> Any:
        """The module's narrower tensors (or all of them) wide, inside tuples and lists too; the rest as it is."""
        if isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value):
            return type(value)(self.widen(part, every=every) for part in value)
        if isinstance(value, Tensor) and value.dtype in self.narrower and (every or self.is_stored(value)):
            # not `.float()`: torch.export would record an assertion on the type with it
            return torch.ops.aten._to_copy.default(value, dtype=self.dtype)
        return value


class _StreamParameters(_WidenParameters):
    """Also widens large Linear weights in pieces, and drops the pages of parameters every CHUNK_BYTES."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(dtype, module.buffers() if dtype == torch.float64 else ())
        mappings = list_file_mappings()
        self.mapped = {id(parameter) for parameter in module.parameters() if lies_in_file(parameter, mappings)}
        self.touched: dict[int, Tensor] = {}

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.drop()

    def compute(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], used: list[Tensor]
    ) -> Any:
        if func is functional.linear and self.is_large(args[1]):
            result = self.multiply_in_pieces(*args, **kwargs)
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

    def is_large(self, weight: object) -> bool:
        return (
            isinstance(weight, nn.Parameter)
            and weight.dtype in self.narrower
            and weight.dim() == 2
            and self.dtype.itemsize * weight.numel() > _WIDENED_AT_ONCE_BYTES
        )

    def multiply_in_pieces(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """functional.linear, a few rows of the weight [N, K] widened at a time."""
        rows = max(1, _WIDENED_AT_ONCE_BYTES // (self.dtype.itemsize * weight.shape[1]))
        out = x.new_empty((*x.shape[:-1], weight.shape[0]))
        for start in range(0, weight.shape[0], rows):
            piece = weight[start : start + rows]
            out[..., start : start + rows] = functional.linear(x, piece.to(self.dtype))
            if piece.nbytes >= CHUNK_BYTES and id(weight) in self.mapped:
                drop_pages(weight.data_ptr() + start * weight.shape[1] * weight.itemsize, piece.nbytes)
        return out if bias is None else out + self.widen(bias, every=True)


def _flatten(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flatten(value)
        else:
            yield value
