"""A bundle's folder: its manifest read and written, its files listed, digested and compared with their digests.

Paths are POSIX, relative, and cannot leave the bundle. Standard library only, Python 3.10+.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from specs.bundle import MANIFEST_NAME, FileEntry, Manifest
from specs.bundle.manifest import is_as_written, make_json_error, parse_manifest, spell_manifest
from specs.errors import BundleError

_CHUNK_BYTES = 1 << 20
_MANIFEST_MAX_BYTES = 64 << 20  # a manifest of a thousand graphs is below 1 MB


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
    manifest = parse_manifest(_read_text(path), source=path)
    for relative in _list_references(manifest):
        resolve_inside(folder, relative)
    return manifest


def _read_text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > _MANIFEST_MAX_BYTES:
            raise ValueError(f"{size} bytes, more than any manifest has")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise make_json_error(path, error) from None


def _list_references(manifest: Manifest) -> Iterator[str]:
    yield from manifest.files
    for graph in manifest.graphs:
        yield graph.file
        yield graph.golden
        yield from (file for file in (graph.evaluation, graph.held_out) if file)
        yield from (typed.file for typed in graph.typed)
        yield from (typed.plugin_file for typed in graph.typed if typed.plugin_file)
        yield from (engine.file for engine in graph.engines)


def write_manifest(folder: Path, manifest: Manifest, texts: Mapping[str, str] | None = None) -> Manifest:
    """Write `manifest.json`, and with it `texts` (files by relative path), whose entries it returns with.

    Everything is written to temporary files first and then renamed, so that a full disk leaves what was there.
    """
    new = {name: text.encode("utf-8") for name, text in (texts or {}).items()}
    entries = {name: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in new.items()}
    manifest = replace(manifest, files={**manifest.files, **entries})
    new[MANIFEST_NAME] = spell_manifest(manifest).encode("utf-8")
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


def _name_temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def verify_manifest(folder: Path) -> None:
    """Refuse a manifest of which any byte was changed after it was written."""
    path = folder / MANIFEST_NAME
    if not is_as_written(_read_text(path)):
        raise BundleError(
            "the manifest was changed after it was written",
            where=str(path),
            allowed="the text that metagen-deploy wrote",
            fix="copy the bundle again, or export it again",
        )


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


def index_files(folder: Path, known: Mapping[str, FileEntry] | None = None) -> dict[str, FileEntry]:
    """Digest every file; entries of `known` are trusted when the size agrees (for files this process did not touch)."""
    index = {}
    for relative in list_files(folder):
        path = folder / relative
        size = path.stat().st_size
        old = (known or {}).get(relative)
        index[relative] = old if old and old.bytes == size else FileEntry(bytes=size, sha256=digest_file(path))
    return index


def list_files(folder: Path) -> Iterator[str]:
    """Every file below `folder` except the manifest, as sorted POSIX paths."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != MANIFEST_NAME:
            yield relative


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
