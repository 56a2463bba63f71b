"""Jinja for templates of somebody else: the package's own sandbox, and bounds on what a template may cost.

It has what transformers' `apply_chat_template` gives a template: `raise_exception`, `strftime_now`, `tojson` without
HTML escapes, loop controls and `{% generation %}`. The package's sandbox keeps Python's attributes out of reach and
values as they are. A template is a program, though, and may run for ever or multiply what it holds: so it ends after
`LONGEST_SECONDS`, and no operator makes a value larger than `LONGEST`.
"""

from __future__ import annotations

import datetime
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

LONGEST = 1 << 24  # characters of a text, or entries of a list; a template may repeat what it is given
LONGEST_SECONDS = 5.0  # a conversation takes milliseconds
_LARGEST_BITS = 1 << 12  # of an integer
_WIDTH = re.compile(r"[%:][^a-zA-Z%{}]*[0-9]{7}")  # "%9999999d", "{:>9999999}"


@contextmanager
def limit_time() -> Iterator[None]:
    """TimeoutError in Python code of this thread after `LONGEST_SECONDS`, also in a loop that writes nothing."""
    end = time.monotonic() + LONGEST_SECONDS

    def watch(frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"stopped after {LONGEST_SECONDS:g} seconds")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def make_environment() -> Any:
    """Jinja as transformers sets it up, within bounds; the package `jinja2` must be installed."""
    sandbox, compiler, extensions = (
        importlib.import_module(f"jinja2.{name}") for name in ("sandbox", "compiler", "ext")
    )

    class Generation(extensions.Extension):  # type: ignore[name-defined,misc]
        """`{% generation %}` marks what an assistant said, for training; the text is what stands in it."""

        tags = {"generation"}  # noqa: RUF012 - as the package wants it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Generator(compiler.CodeGenerator):  # type: ignore[name-defined,misc]
        """`~` is no operator to the sandbox: it is computed by the environment here."""

        def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802 - the package's name
            self.write("environment.join_texts((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):  # type: ignore[name-defined,misc]
        """Sums, products and powers are looked at before they are computed: no time limit stops one under way."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})
        code_generator_class = Generator

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%" and isinstance(left, str):
                _require_modest(left, *(right if isinstance(right, tuple) else (right,)))
            elif operator != "%":
                _require_small(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, called: Any, *arguments: Any, **named: Any) -> Any:
            method = getattr(called, "__wrapped__", called)  # the package wraps a text's `format`
            _require_modest(getattr(method, "__self__", None), *arguments, *named.values())
            return super().call(context, called, *arguments, **named)

        def join_texts(self, parts: Sequence[object]) -> str:
            texts = [str(part) for part in parts]
            _require(sum(map(len, texts)) <= LONGEST)
            return "".join(texts)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extensions.loopcontrols])
    for name in ("center", "format", "indent"):
        environment.filters[name] = _bound_filter(environment.filters[name])
    environment.filters["tojson"] = _spell_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().astimezone().strftime(pattern)
    return environment


def _spell_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise importlib.import_module("jinja2").TemplateError(message)


def _require_small(operator: str, left: Any, right: Any) -> None:
    """ValueError where `left operator right` would be larger than anything in a conversation."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        _require(bits <= _LARGEST_BITS)
        return
    sizes = [len(value) for value in (left, right) if isinstance(value, (str, list, tuple))]
    times = [value for value in (left, right) if isinstance(value, int)]
    _require(sum(sizes) * max([1, *times]) <= LONGEST)


def _bound_filter(make: Callable[..., Any]) -> Callable[..., Any]:
    """One of the filters that make as much as they are told to."""

    def bound(*arguments: Any, **named: Any) -> Any:
        _require_modest(*arguments, *named.values())
        return make(*arguments, **named)

    return bound


def _require_modest(*values: object) -> None:
    """ValueError for a width that no text has, given as a number or within the text of a format."""
    _require(not any(isinstance(value, int) and value > LONGEST for value in values))
    _require(not any(isinstance(value, str) and _WIDTH.search(value) for value in values[:1]))


def _require(small: bool) -> None:
    if not small:
        raise ValueError("it computes a value that is larger than any in a conversation")
