"""What an option's text means: sizes, ranges of dims, named files. Text that means nothing is wrong usage (exit 2)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specs.errors import InputError

if TYPE_CHECKING:
    from specs.schema import Dim


class Place(click.ParamType[Path]):
    """A path: whether it is there, and readable, is told by the verb, with exit status 1.

    Only how it is spelled is looked at: ONNX Runtime, safetensors and the compilers are handed names as UTF-8, whatever
    the file system's own encoding is, and would look for another file.
    """

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        require_utf8(str(value))
        return Path(value)


class Source(click.ParamType[str]):
    """A spec's name or a path, as text; see `Place`."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        require_utf8(str(value))
        return str(value)


def require_utf8(path: str) -> None:
    """Raises InputError for a name whose bytes in the file system are not its text in UTF-8."""
    try:
        full = os.path.abspath(path)  # noqa: PTH100 - a name too long is told by the verb
        same = os.fsencode(full) == full.encode("utf-8")
    except UnicodeEncodeError:
        same = False
    except FileNotFoundError:  # the current folder is gone, which is told by the verb
        same = True
    if not same:
        encoding = sys.getfilesystemencoding()
        raise InputError(
            "the name of this path is not UTF-8, in which the runtimes look for it",
            where=ascii(path),
            got=f"file names are {encoding} here",
            fix="rename it, or the folder that it is in" if encoding == "utf-8" else "set PYTHONUTF8=1",
        )


class ByteSize(click.ParamType[int]):
    """`8G`, `512M`, `1.5GiB` or plain bytes, as a number of bytes (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
        if not match or float(match[1]) == 0:
            self.fail(f"{value!r} is not a size; write 8G, 512M or a number of bytes", param, ctx)
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


class NamedDim(click.ParamType[tuple[str, "Dim"]]):
    """`batch=1:8:32` is a range of a dim; `batch=4` a dim that is always 4."""

    name = "dim"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Dim]:
        from specs.schema import Dim

        match = re.fullmatch(r"([^=]+)=([0-9]{1,9})(?::([0-9]{1,9}):([0-9]{1,9}))?", str(value))
        try:
            if not match:
                raise ValueError
            low, opt, high = (int(size) for size in match.groups(default=match[2])[1:])
            return match[1], Dim(min=low, opt=opt, max=high)
        except ValueError:  # pydantic's ValidationError is one
            self.fail(f"{value!r} is not NAME=MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, e.g. batch=1:8:32", param, ctx)


class FixedSizes(click.ParamType[dict[str, int]]):
    """`batch=1,cache=1024`: one size for each of these dims."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        pairs = [re.fullmatch(r"([^=,]+)=([1-9][0-9]{0,8})", part.strip()) for part in str(value).split(",")]
        sizes = {pair[1]: int(pair[2]) for pair in pairs if pair}
        if len(sizes) < len(pairs):
            self.fail(f"{value!r} is not NAME=SIZE,..., each name once, e.g. batch=1,cache=1024", param, ctx)
        return sizes


class NamedFile(click.ParamType[tuple[str, str]]):
    """`image=digit.png`: the tensor called `image` is in `digit.png`."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, file = str(value).partition("=")
        if not (name and equals and file):
            self.fail(f"{value!r} is not NAME=FILE, e.g. image=digit.png", param, ctx)
        return name, file


def collect_named(ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The pairs of a repeatable option as a dict; a name that is given twice is wrong usage."""
    named = dict(pairs)
    if len(named) < len(pairs):
        twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise click.BadParameter(f"'{twice}' is given twice", ctx=ctx, param=param)
    return named
