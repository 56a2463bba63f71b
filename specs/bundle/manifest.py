"""manifest.json: records -> text in one exact spelling that carries its own digest, and text -> records.

Whatever the text, it either parses into records of the right types, or is a `BundleError` that says where. Standard
library only, Python 3.10+. No file is opened here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from specs.bundle import SCHEMA_VERSION, EngineFile, FileEntry, Graph, IoTensor, Manifest, TypedGraph
from specs.errors import BundleError

_LARGEST_SIZE = 1 << 40  # of one axis
_LARGEST_DIM = 1 << 20  # of a dynamic one, as in a spec
_LARGEST_NUMBER = 1e300


def spell_manifest(manifest: Manifest) -> str:
    """The text of a manifest, with the digest of what it says under `digest`."""
    return _sign(asdict(manifest))


def is_as_written(text: str) -> bool:
    """Whether not a byte of a manifest's text was changed after `spell_manifest` made it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and text == _sign({key: data[key] for key in data if key != "digest"})


def _sign(data: dict[str, Any]) -> str:
    return _spell({**data, "digest": digest_text(_spell(data))})


def _spell(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def digest_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def parse_manifest(text: str, *, source: Path) -> Manifest:
    """The records of `text`; `source` names it in errors.

    Raises:
        BundleError: not JSON, a newer schema, a missing or mistyped field.
    """
    try:
        raw: object = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(raw, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is no name of a file
    except (ValueError, RecursionError) as error:
        raise make_json_error(source, error) from None
    return _parse(source, raw)


def make_json_error(source: Path, problem: Exception) -> BundleError:
    """For a manifest that cannot be read as text or as JSON."""
    return BundleError("the manifest is not JSON", where=str(source), got=str(problem), fix="export it again")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _parse(source: Path, raw: object) -> Manifest:
    top = _Reader(source, raw, "")
    version: int = top.take("schema_version", int)
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"this bundle's manifest has schema version {version}",
            where=str(source),
            allowed=f"up to {SCHEMA_VERSION}, which this version of metagen-deploy reads",
            fix="pip install --upgrade metagen-deploy",
        )
    if version < 1:
        raise top.error("must be at least 1", "schema_version")
    dims = {}
    for name, bounds in top.mapping("dims", list).items():
        if (
            len(bounds) != 3
            or any(type(b) is not int or not 1 <= b <= _LARGEST_DIM for b in bounds)
            or sorted(bounds) != bounds
        ):
            raise top.error(f"must be [min, opt, max] in rising order, from 1 to {_LARGEST_DIM}", f"dims.{name}")
        dims[name] = (bounds[0], bounds[1], bounds[2])
    files = {}
    for name, item in top.mapping("files", dict).items():
        entry = _Reader(source, item, f"files[{name}]")
        files[name] = FileEntry(bytes=entry.take("bytes", int), sha256=entry.take("sha256", str))
        if files[name].bytes < 0:
            raise entry.error("must not be negative", "bytes")
    graphs = tuple(_parse_graph(item) for item in top.each("graphs"))
    if not graphs:
        raise top.error("names no graph", "graphs")
    _require_distinct(top, "graphs", (graph.name for graph in graphs))
    pipeline = top.take("pipeline", dict)
    if not isinstance(pipeline.get("kind"), str):
        raise top.error("must be a string", "pipeline.kind")
    return Manifest(
        name=top.take("name", str),
        spec_digest=top.take("spec_digest", str),
        created_by=top.mapping("created_by", str),
        dims=dims,
        pipeline=pipeline,
        graphs=graphs,
        parity=top.mapping("parity", (int, float)),
        files=files,
        schema_version=version,
    )


def _parse_graph(item: _Reader) -> Graph:
    inputs = tuple(_parse_io(io) for io in item.each("inputs"))
    outputs = tuple(_parse_io(io) for io in item.each("outputs"))
    _require_distinct(item, "inputs", (io.name for io in inputs))
    _require_distinct(item, "outputs", (io.name for io in outputs))
    return Graph(
        name=item.take("name", str),
        component=item.take("component", str),
        file=item.take("file", str),
        golden=item.take("golden", str),
        inputs=inputs,
        outputs=outputs,
        precision=item.take("precision", str, "fp32"),
        custom_ops=item.strings("custom_ops"),
        noise_floor=item.mapping("noise_floor", (int, float)),
        reduced_golden=item.take("reduced_golden", str, ""),
        no_noise_floor=item.take("no_noise_floor", str, ""),
        probabilities=item.strings("probabilities"),
        evaluation=item.take("evaluation", (str, type(None)), None),
        held_out=item.take("held_out", (str, type(None)), None),
        typed=tuple(
            TypedGraph(
                keep_fp32=t.strings("keep_fp32"),
                plugin_keep_fp32=t.strings("plugin_keep_fp32"),
                **_take_fields(t, TypedGraph),
            )
            for t in item.each("typed")
        ),
        engines=tuple(
            EngineFile(plugins=e.mapping("plugins", str), sizes=e.mapping("sizes", int), **_take_fields(e, EngineFile))
            for e in item.each("engines")
        ),
    )


def _parse_io(item: _Reader) -> IoTensor:
    shape = item.take("shape", list)
    if not all(isinstance(d, str) or (type(d) is int and 0 <= d <= _LARGEST_SIZE) for d in shape):
        raise item.error("must hold ints and dim names", "shape")
    return IoTensor(name=item.take("name", str), dtype=item.take("dtype", str), shape=tuple(shape))


_SCALARS: dict[str, tuple[Any, Any]] = {
    "str": (str, ...),
    "int": (int, ...),
    "float": ((int, float), ...),
    "float | None": ((int, float, type(None)), None),
    "str | None": ((str, type(None)), None),
    "bool": (bool, False),
}


_Record = TypeVar("_Record", TypedGraph, EngineFile)


def _take_fields(item: _Reader, record: type[_Record]) -> dict[str, Any]:
    """The scalar fields of a dataclass, by their annotations."""
    return {f.name: item.take(f.name, *_SCALARS[str(f.type)]) for f in fields(record) if str(f.type) in _SCALARS}


def _require_distinct(item: _Reader, key: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise item.error(f"names '{name}' twice", key)
        seen.add(name)


class _Reader:
    """Takes typed fields out of parsed JSON, with the field's path in every error."""

    def __init__(self, source: Path, raw: object, at: str) -> None:
        self.source, self.at = source, at
        if not isinstance(raw, dict):
            raise self.error(f"must be an object, got {type(raw).__name__}")
        self.raw: dict[str, Any] = raw

    def error(self, problem: str, key: str = "") -> BundleError:
        at = ".".join(part for part in (self.at, key) if part) or "the document"
        return BundleError(f"manifest: {at} {problem}", where=str(self.source), fix="export the bundle again")

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        value = self.raw.get(key, default)
        if value is ...:
            raise self.error("is missing", key)
        if value is not default and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.error(f"must be {names}, got {type(value).__name__}", key)
        number = isinstance(kind, tuple) and float in kind and isinstance(value, (int, float))
        if number and not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:  # also refuses NaN
            raise self.error("must be a finite number", key)
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, [])
        if not all(isinstance(v, str) for v in values):
            raise self.error("must be a list of strings", key)
        return tuple(values)

    def mapping(self, key: str, kind: type | tuple[type, ...]) -> dict[str, Any]:
        values = self.take(key, dict, {})
        inner = _Reader(self.source, values, ".".join(part for part in (self.at, key) if part))
        return {name: inner.take(name, kind) for name in values}

    def each(self, key: str) -> Iterator[_Reader]:
        for index, item in enumerate(self.take(key, list, [])):
            yield _Reader(self.source, item, f"{self.at + '.' if self.at else ''}{key}[{index}]")
