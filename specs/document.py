"""YAML text <-> plain data that remembers its lines: the only file that knows YAML.

Taken: one document, a mapping, of mappings, lists and scalars, in YAML 1.2's core reading (`no` is text, `1e-5` is a
number, `010` is ten). Refused, each with its line: a key written twice, a key that is not text, aliases and anchors
(they can grow without bound), tags, several documents, NaN and infinities, deep nesting, more than 1 MB, more keys or
values than a spec can need (they would only take long to refuse), bytes that are not UTF-8. Nothing is ever constructed
from a tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specs.errors import SpecError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_KEYS = 1_000  # of one mapping
MAX_VALUES = 50_000  # keys and values in all: the names of 21,841 classes fit

Path_ = tuple[str | int, ...]
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Document:
    """Parsed YAML: `data` has dicts, tuples and scalars; `lines` gives the line of each key or item by its path."""

    source: str
    data: dict[str, Any]
    lines: Mapping[Path_, int]

    def locate(self, path: Path_) -> str:
        """`file:line` of `path`, or of the nearest thing around it that exists."""
        while path not in self.lines:
            path = path[:-1]
        line = self.lines[path]  # 0: the data was not read from text
        return f"{self.source}:{line}" if line else self.source


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        SpecError: it cannot be read, is larger than 1 MB, or is not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SpecError(
                "this file is too large to be a spec",
                where=str(path),
                got=f"{size} bytes",
                allowed=f"up to {MAX_BYTES} bytes",
                fix="give the YAML file; weights and data are separate files that it names",
            )
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(
            "this file is not UTF-8 text",
            where=str(path),
            got=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
            fix="give a spec's YAML file, saved as UTF-8",
        ) from None
    except OSError as error:
        raise SpecError(
            "this file cannot be read", where=str(path), got=error.strerror or str(error), fix="check the path"
        ) from None


def parse_document(text: str, *, source: str) -> Document:
    """Parse YAML text; `source` names it in errors.

    Raises:
        SpecError: anything the module's docstring says is refused, or a syntax error; with file and line.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SpecError(
            f"this text is too large to be a spec: over {MAX_BYTES} bytes",
            where=source,
            fix="give a spec's YAML file; weights and data are files of their own",
        )
    reader = _Reader(text, source)
    try:
        return reader.read_document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(
            "this is not YAML",
            where=f"{source}:{mark.line + 1}" if mark else source,
            got=", ".join(part for part in (error.problem, error.context) if part),
            fix="correct the syntax on or just above this line; indent with spaces, quote text that holds ': ' or '#'",
        ) from None
    except (ValueError, OverflowError) as error:  # the scanner turns an escape into a character that does not exist
        raise SpecError(
            "this is not YAML",
            where=f"{source}:{reader.loader.line + 1}",
            got=str(error),
            fix="correct the escape in this text, or use single quotes, which have none",
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(
            "this file holds a character that YAML does not allow",
            where=f"{source}:{line}",
            got=f"U+{ord(error.character) if isinstance(error.character, str) else error.character:04X}",
            fix="remove the character",
        ) from None


def dump_document(data: Mapping[str, Any]) -> str:
    """YAML text that `parse_document` reads back as the same data."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )


def name_type(value: object) -> str:
    """What a YAML author would call the value: "the text '12'", "a mapping", "nothing"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 40 else value[:40] + '…'}'"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a mapping" if isinstance(value, dict) else "a list"


def _convert_number(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


#: tag, pattern, characters it can begin with, conversion: YAML 1.2's core schema without octal and hexadecimal.
_SCALARS: tuple[tuple[str, str, str, Callable[[str], Scalar]], ...] = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN", lambda text: None),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]{1,18}", "-+0123456789", int),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: _convert_number(text.lower()),
    ),
)
_STR = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """SafeLoader's scanner and parser with the scalar rules above; its constructor is not used."""


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that the rules above would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers, _Dumper.yaml_implicit_resolvers = {}, {}  # instead of YAML 1.1's, which they inherit
for _tag, _pattern, _first, _ in _SCALARS:
    for _class in (_Loader, _Dumper):
        _empty = [""] if re.fullmatch(_pattern, "") is not None else []
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [*_first, *_empty])
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))


class _Reader:
    """Turns the parser's events into data, depth first, so that nothing is built before it is checked."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.lines: dict[Path_, int] = {(): 1}
        self.loader: Any = None  # PyYAML's parser has no types
        self.count = 0  # of keys and values

    def _error(
        self, problem: str, event: Any, *, fix: str, got: str | None = None, allowed: str | None = None
    ) -> SpecError:
        where = f"{self.source}:{event.start_mark.line + 1}"
        return SpecError(problem, where=where, got=got, allowed=allowed, fix=fix)

    def read_document(self) -> Document:
        self.loader = _Loader(self.text)
        self.loader.get_event()  # stream start
        if self.loader.check_event(yaml.StreamEndEvent):
            raise SpecError(
                "this file is empty", where=self.source, fix="write the keys that metagen-deploy show --schema lists"
            )
        self.loader.get_event()  # document start
        first = self.loader.peek_event()
        data = self._read((), 0)
        self.loader.get_event()  # document end
        if not self.loader.check_event(yaml.StreamEndEvent):
            raise self._error(
                "this file holds more than one YAML document",
                self.loader.get_event(),
                allowed="one spec a file",
                fix="remove everything from the line '---' on, or move it to a file of its own",
            )
        if not isinstance(data, dict):
            raise self._error(
                f"a spec is a mapping of keys to values, and this is {name_type(data)}",
                first,
                fix="write the keys that metagen-deploy show --schema lists",
            )
        return Document(self.source, data, self.lines)

    def _read(self, path: Path_, depth: int) -> Any:
        event = self.loader.get_event()
        self.count += 1
        if self.count > MAX_VALUES:
            raise self._error(
                f"this holds more than {MAX_VALUES} keys and values",
                event,
                fix="give a spec's YAML file; weights and data are files of their own",
            )
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._error(
                f"anchors and aliases are not taken: '{event.anchor}'",
                event,
                fix="write the value out where it is used",
            )
        if event.tag not in (None, "!"):
            raise self._error(f"tags are not taken: '{event.tag}'", event, fix="remove the tag; values are plain YAML")
        if depth > MAX_DEPTH:
            raise self._error(
                f"this is nested more than {MAX_DEPTH} levels deep",
                event,
                fix="write it flat: a spec needs four levels",
            )
        if isinstance(event, yaml.ScalarEvent):
            return self._convert(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._read_sequence(path, depth)
        return self._read_mapping(path, depth)

    def _read_sequence(self, path: Path_, depth: int) -> tuple[Any, ...]:
        items: list[Any] = []
        while not self.loader.check_event(yaml.SequenceEndEvent):
            at = (*path, len(items))
            self.lines[at] = self.loader.peek_event().start_mark.line + 1
            items.append(self._read(at, depth + 1))
        self.loader.get_event()
        return tuple(items)

    def _read_mapping(self, path: Path_, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self.loader.check_event(yaml.MappingEndEvent):
            event = self.loader.peek_event()
            key = self._read(path, depth + 1)
            if not isinstance(key, str):
                raise self._error(
                    f"a key must be text, and this is {name_type(key)}", event, fix="quote it, if it is meant"
                )
            if len(values) == MAX_KEYS:
                raise self._error(
                    f"this mapping has more than {MAX_KEYS} keys",
                    event,
                    got=f"'{key}' after {MAX_KEYS} others",
                    fix="write the keys that metagen-deploy show --schema lists",
                )
            at = (*path, key)
            if key in values:
                raise self._error(
                    f"the key '{key}' is written twice",
                    event,
                    got=f"first on line {self.lines[at]}",
                    fix="keep one of the two",
                )
            self.lines[at] = event.start_mark.line + 1
            values[key] = self._read(at, depth + 1)
        self.loader.get_event()
        return values

    def _convert(self, event: Any) -> Scalar:
        tag = _STR
        if event.implicit[0]:  # plain, unquoted
            tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        for known, _, _, convert in _SCALARS:
            if tag == known:
                value = convert(event.value)
                if isinstance(value, float) and not math.isfinite(value):
                    raise self._error(
                        "a number must be finite", event, got=event.value, fix="write the number that is meant"
                    )
                return value
        text = str(event.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self._error(
                "a text holds half of a surrogate pair, which is no character",
                event,
                fix="write the character itself, or its one escape \\UXXXXXXXX",
            )
        return text
