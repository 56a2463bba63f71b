"""The switch between custom ops and torch's own operators, and how a wrapper asks for it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, the wrappers of `specs.ops` call torch's own operators instead of custom ops.

    A model run or exported like this is what a user would have without this project: the baseline of benchmarks.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether `plain_torch` is in force."""
    return _plain.get()
