"""The bundle's manifest: the only thing exporters, engines, the edge runtime and C++ agree on.

Standard library only, Python 3.10+: an edge device reads it with nothing installed. `manifest.json` names every file
with its digest, every graph with its inputs and outputs, every typed graph and every engine. Paths are POSIX,
relative, and cannot leave the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from specs.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPEC_NAME = "spec.yaml"
#: How the reason of a node begins that is kept in fp32 because it makes a spectrogram.
SPECTRUM_REASON = "spectrum"
#: ... and of those that a model itself declares to leave the range of half precision (`GraphSpec.keep_float32`).
RANGE_REASON = "declared range"
_CHUNK_BYTES = 1 << 20
_MANIFEST_MAX_BYTES = 64 << 20  # a manifest of a thousand graphs is below 1 MB
_LARGEST_SIZE = 1 << 40  # of one axis
_LARGEST_DIM = 1 << 20  # of a dynamic one, as in a spec
_LARGEST_NUMBER = 1e300


@dataclass(frozen=True, kw_only=True)
class IoTensor:
    """One input or output: `shape` holds ints and dim names; dtype is numpy's name, as the caller sees it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class TypedGraph:
    """A graph lowered for one target and typed at one precision; any runtime of that lowering can build from it."""

    target: str
    precision: str
    lowering: str
    opset: int
    file: str
    keep_fp32: tuple[str, ...] = ()  # "node: reason", for every node kept above the asked precision
    plugin_file: str | None = None  # the same graph with nodes left to TensorRT plugins, where it has such
    task_metric: float | None = None

    @property
    def front_end(self) -> frozenset[str]:
        """Names of the nodes that have no precision to choose.

        Those that make a spectrogram of the input, and those that the model declares to need float32.
        """
        parts = (entry.partition(": ") for entry in self.keep_fp32)
        return frozenset(name for name, _, reason in parts if reason.startswith((SPECTRUM_REASON, RANGE_REASON)))


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """A compiled engine. `key` digests every input of its build, so that a stale one is never taken for a fresh one."""

    target: str
    precision: str
    backend: str
    backend_version: str
    compute_capability: str  # "8.9"; "" for a backend without one
    gpu: str  # the device it was built on, "" when built ahead of time
    plugins: Mapping[str, str] = field(default_factory=dict)  # op -> sha256 of the library
    sizes: Mapping[str, int] = field(default_factory=dict)  # dim -> the one size it takes; {}: the manifest's ranges
    shares_profiles: bool = False  # whether several execution contexts may be in one of its optimisation profiles
    file: str
    key: str
    build_seconds: float


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of a component: the portable truth, its golden data, and what was derived from it."""

    name: str
    component: str
    file: str
    golden: str
    inputs: tuple[IoTensor, ...]
    outputs: tuple[IoTensor, ...]
    precision: str = "fp32"  # of the portable file: a user's own may compute in fp16, or be quantised already
    custom_ops: tuple[str, ...] = ()
    noise_floor: Mapping[str, float] = field(default_factory=dict)  # output -> max |fp32 - fp64| of torch itself
    evaluation: str | None = None
    typed: tuple[TypedGraph, ...] = ()
    engines: tuple[EngineFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size and digest of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole bundle. `pipeline` says how a host drives the graphs (its `kind` names a class of engines.runtime)."""

    name: str
    spec_digest: str
    created_by: Mapping[str, str]  # tool -> version
    dims: Mapping[str, tuple[int, int, int]]  # name -> min, opt, max
    pipeline: Mapping[str, Any]
    graphs: tuple[Graph, ...]
    parity: Mapping[str, float] = field(default_factory=dict)  # the spec's own limits
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def graph(self, name: str) -> Graph:
        """The graph called `name`; raises BundleError naming those there are."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise BundleError(f"this bundle has no graph '{name}'", allowed=", ".join(g.name for g in self.graphs))


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def resolve_inside(folder: Path, relative: str) -> Path:
    """`folder / relative`, refused with BundleError when it is absolute or would leave `folder` (links included)."""
    pure = PurePosixPath(relative)
    inside = bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts
    inside = inside and "\\" not in relative and "\0" not in relative
    path = folder / relative if inside else folder
    try:
        inside = inside and path.resolve().is_relative_to(folder.resolve())
        path.is_file()  # a name too long for this file system is an OSError
    except (OSError, RuntimeError):  # or links in a circle
        inside = False
    if not inside:
        raise BundleError(
            f"the manifest names a path outside the bundle: {relative!r}",
            where=str(folder / MANIFEST_NAME),
            allowed="relative paths below the bundle's folder",
            fix="do not use this bundle; export it again",
        )
    return path


def list_files(folder: Path) -> Iterator[str]:
    """Every file below `folder` except the manifest, as sorted POSIX paths."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != MANIFEST_NAME:
            yield relative


def index_files(folder: Path, known: Mapping[str, FileEntry] | None = None) -> dict[str, FileEntry]:
    """Digest every file; entries of `known` are trusted when the size agrees (for files this process did not touch)."""
    index = {}
    for relative in list_files(folder):
        path = folder / relative
        size = path.stat().st_size
        old = (known or {}).get(relative)
        index[relative] = old if old and old.bytes == size else FileEntry(bytes=size, sha256=digest_file(path))
    return index


def write_manifest(folder: Path, manifest: Manifest, texts: Mapping[str, str] | None = None) -> Manifest:
    """Write `manifest.json`, and with it `texts` (files by relative path), whose entries it returns with.

    Everything is written to temporary files first and then renamed, so that a full disk leaves what was there.
    """
    new = {name: text.encode("utf-8") for name, text in (texts or {}).items()}
    entries = {name: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in new.items()}
    manifest = replace(manifest, files={**manifest.files, **entries})
    new[MANIFEST_NAME] = _sign(asdict(manifest)).encode("utf-8")
    try:
        for name, data in new.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            _name_temporary(path).write_bytes(data)
        for name in new:
            _name_temporary(folder / name).replace(folder / name)
    except BaseException:
        for name in new:
            _name_temporary(folder / name).unlink(missing_ok=True)
        raise
    return manifest


def _sign(data: dict[str, Any]) -> str:
    """The manifest's text: its data in one exact spelling, with the digest of that spelling under `digest`."""
    return _spell({**data, "digest": digest_text(_spell(data))})


def _spell(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def verify_manifest(folder: Path) -> None:
    """Refuse a manifest of which any byte was changed after it was written."""
    path = folder / MANIFEST_NAME
    data = _read_json(path)
    assert isinstance(data, dict)  # it was parsed before
    data.pop("digest", None)
    if path.read_text(encoding="utf-8") != _sign(data):
        raise BundleError(
            "the manifest was changed after it was written",
            where=str(path),
            allowed="the text that metagen-deploy wrote",
            fix="copy the bundle again, or export it again",
        )


def _name_temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def read_manifest(folder: Path) -> Manifest:
    """Parse and validate `manifest.json`; digests are not computed here (see `verify_files`).

    Raises:
        BundleError: no manifest, not JSON, a newer schema, a missing or mistyped field, a path that leaves the bundle.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir() or not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME}", fix="make one: metagen-deploy export SPEC -o BUNDLE"
        )
    manifest = _parse(path, _read_json(path))
    for relative in _list_references(manifest):
        resolve_inside(folder, relative)
    return manifest


def _read_json(path: Path) -> object:
    """The parsed document: strict JSON of valid Unicode, not nested beyond reason."""
    try:
        if (size := path.stat().st_size) > _MANIFEST_MAX_BYTES:
            raise ValueError(f"{size} bytes, more than any manifest has")
        raw: object = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        json.dumps(raw, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is no name of a file
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError("the manifest is not JSON", where=str(path), got=str(error), fix="export it again") from None
    return raw


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def verify_files(folder: Path, manifest: Manifest, only: Iterable[str] | None = None) -> None:
    """Compare files with the manifest's digests: all of them and the manifest with its own, or `only` these.

    Raises:
        BundleError: a file is missing, of another size, or of another digest.
    """
    if only is None:
        verify_manifest(folder)
    for relative in manifest.files if only is None else only:
        entry = manifest.files.get(relative)
        path = resolve_inside(folder, relative)
        if entry is None:
            raise BundleError("a file is not listed in the manifest", where=str(path), fix="export the bundle again")
        if not path.is_file():
            raise BundleError("a file of the bundle is missing", where=str(path), fix="copy the whole bundle again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                "a file of the bundle was truncated or changed",
                where=str(path),
                got=f"{size} bytes",
                allowed=f"{entry.bytes} bytes",
                fix="copy the bundle again, or export it again",
            )
        digest = digest_file(path)
        if digest != entry.sha256:
            raise BundleError(
                "a file of the bundle was changed",
                where=str(path),
                got=f"sha256 {digest[:16]}…",
                allowed=f"sha256 {entry.sha256[:16]}…",
                fix="copy the bundle again, or export it again",
            )


def _list_references(manifest: Manifest) -> Iterator[str]:
    yield from manifest.files
    for graph in manifest.graphs:
        yield graph.file
        yield graph.golden
        if graph.evaluation:
            yield graph.evaluation
        yield from (typed.file for typed in graph.typed)
        yield from (typed.plugin_file for typed in graph.typed if typed.plugin_file)
        yield from (engine.file for engine in graph.engines)


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


def _require_distinct(item: _Reader, key: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise item.error(f"names '{name}' twice", key)
        seen.add(name)


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
        evaluation=item.take("evaluation", (str, type(None)), None),
        typed=tuple(
            TypedGraph(keep_fp32=t.strings("keep_fp32"), **_take_fields(t, TypedGraph)) for t in item.each("typed")
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
}
_Record = TypeVar("_Record", TypedGraph, EngineFile)


def _take_fields(item: _Reader, record: type[_Record]) -> dict[str, Any]:
    """The scalar fields of a dataclass, by their annotations."""
    return {f.name: item.take(f.name, *_SCALARS[str(f.type)]) for f in fields(record) if str(f.type) in _SCALARS}


def digest_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
