"""Which file a build compiles: the typed graph with the bodies of custom ops, or the one whose nodes plugins run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engines import plugins
from engines.backends.base import Availability, Backend
from engines.onnx_files.read import read_onnx
from engines.onnx_files.records import Node
from specs.bundle import FileEntry, Manifest, TypedGraph
from specs.system.disk import translate_os_errors


@dataclass(frozen=True, kw_only=True)
class Source:
    """The typed graph that is compiled, the libraries that run some of its nodes, and what a person should know."""

    file: str
    keep_fp32: tuple[str, ...]  # names of its nodes, for compilers without strong typing
    libraries: Mapping[str, plugins.PluginLibrary]  # op -> its library
    notes: tuple[str, ...]

    @property
    def digests(self) -> dict[str, str]:
        """op -> sha256 of its library."""
        return {op: library.sha256 for op, library in self.libraries.items()}


def choose_source(folder: Path, typed: TypedGraph, backend: Backend, available: Availability) -> Source:
    """The graph that leaves nodes to plugins where a library of them is at hand, else the one with their bodies.

    Raises:
        BuildError: a library was asked for, and it does not serve.
    """
    bodies = Source(file=typed.file, keep_fp32=_name_nodes(typed.keep_fp32), libraries={}, notes=())
    if typed.plugin_file is None or not backend.writes_engines:
        return bodies
    ops = sorted({node.op_type for node in read_onnx(folder / typed.plugin_file).walk_nodes() if _is_plugin(node)})
    if not backend.takes_plugins:
        return replace(bodies, notes=(plugins.note_bodies(ops, f"{backend.name} takes none"),))
    libraries = plugins.choose_libraries(ops, plugins.find_libraries(folder), available.version)
    if not libraries:
        return replace(bodies, notes=(plugins.note_bodies(ops, f"name a library in {plugins.VARIABLE}"),))
    notes = tuple(f"{op}: the plugin of {one.path.name}, sha256 {one.sha256[:16]}…" for op, one in libraries.items())
    kept = _name_nodes(typed.plugin_keep_fp32 or typed.keep_fp32)  # older bundles list those of the bodies alone
    return Source(file=typed.plugin_file, keep_fp32=kept, libraries=libraries, notes=notes)


def copy_libraries(folder: Path, manifest: Manifest, chosen: Source) -> dict[str, FileEntry]:
    """Copy the plugin libraries that the bundle lacks into it, under names that say their content."""
    held = {entry.sha256 for entry in manifest.files.values()}
    entries = {}
    for library in {one.sha256: one for one in chosen.libraries.values()}.values():
        if library.sha256 in held:
            continue
        file = f"{plugins.FOLDER}/{library.path.stem}.{library.sha256[:12]}{library.path.suffix}"
        with translate_os_errors(folder / file):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(library.path, folder / file)
        entries[file] = FileEntry(bytes=(folder / file).stat().st_size, sha256=library.sha256)
    return entries


def _name_nodes(entries: tuple[str, ...]) -> tuple[str, ...]:
    """The nodes of "node: reason"."""
    return tuple(entry.split(":")[0] for entry in entries)


def _is_plugin(node: Node) -> bool:
    return node.domain == plugins.DOMAIN
