"""How the wrappers of `specs.ops` run: as custom ops, as their bodies, or as torch's own operators."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)
_opened: contextvars.ContextVar[bool] = contextvars.ContextVar("opened", default=False)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, the wrappers of `specs.ops` call torch's own operators instead of custom ops.

    A model run or exported like this is what a user would have without this project: the baseline of benchmarks.
    """
    with _set(_plain):
        yield


@contextlib.contextmanager
def open_bodies() -> Iterator[None]:
    """Inside, the wrappers of `specs.ops` call the custom ops' bodies: the same numbers, bit by bit.

    What looks at every call of torch (`exporters.stored_parameters`, `exporters.golden.run_cost`) sees into them then.
    """
    with _set(_opened):
        yield


def is_plain() -> bool:
    """Whether `plain_torch` is in force."""
    return _plain.get()


def is_opened() -> bool:
    """Whether a body shall be called instead of its custom op: in `open_bodies`, and in `plain_torch`."""
    return _opened.get() or _plain.get()


@contextlib.contextmanager
def _set(switch: contextvars.ContextVar[bool]) -> Iterator[None]:
    token = switch.set(True)
    try:
        yield
    finally:
        switch.reset(token)
