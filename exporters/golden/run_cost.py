"""What one run of a module costs, found out without running it: multiply-accumulates, and the most bytes at once.

    run(fake x)  --every operator of torch-->  + its multiply-accumulates,  + new storages, - freed ones

Fake tensors have shapes and no values. Multiply-accumulates are torch's own count (`torch.utils.flop_counter`): of
products and convolutions. Bytes are those of tensors that operators make, widened parameters among them; not what an
operator holds only inside itself, nor parameters where they are stored. Both are the same on every machine, so that
what is decided by them is too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Of one call."""

    macs: int
    peak_bytes: int


def estimate_cost(run: Callable[..., object], *inputs: torch.Tensor) -> RunCost:
    """Count what `run(*inputs)` would take; custom ops have to be opened (`specs.ops.open_bodies`) to be seen into.

    Raises:
        RuntimeError, ValueError: whatever torch raises where `run` depends on values, or does not run at all.
    """
    counter, watch = FlopCounterMode(display=False), _WatchStorages()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    given = [fake.from_tensor(value) for value in inputs]
    with torch.no_grad(), fake, watch, counter:  # the counter splits composite operators: the watch sees their parts
        run(*given)
    return RunCost(macs=counter.get_total_flops() // 2, peak_bytes=watch.peak_bytes)


class _WatchStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own has no types
    """Adds up the storages that operators make, until nobody holds them any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: set[int] = set()
        self.live_bytes = self.peak_bytes = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(output.alias_info is None for output in func._schema.returns):  # a view makes nothing
            for storage in _list_storages(result):
                self.add(storage)
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = _key(storage), storage.nbytes()
        if key in self.live:
            return
        self.live.add(key)
        weakref.finalize(storage, self.free, key, size).atexit = False
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def free(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.live_bytes -= size


def _list_storages(values: object) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _key(storage: torch.UntypedStorage) -> int:
    """Its address: one for all views of a storage."""
    key: int = storage._cdata
    return key
