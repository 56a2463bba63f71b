"""TensorRT plugins: which library runs which op, whether it is the one an engine was built with, and how it is loaded.

    METAGEN_PLUGINS, or the bundle's plugins/ --find--> libraries --choose--> the library of each op --> build, run

A library is asked for by being there: `METAGEN_PLUGINS` names a library or a folder of them; where it is not set, the
bundle's own `plugins/` counts; where it is set to nothing, no plugin is used. With a library, `build` compiles the
typed graph that keeps the op's node; without one, the graph that holds the op's body. Both give the same numbers, and
the build report says which ran. An engine's libraries are copied into its bundle and listed by SHA-256.

The sources are in `cpp/`. Standard library only: a Jetson loads engines with nothing else installed.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specs.bundle import EngineFile, Manifest
from specs.bundle.files import digest_file
from specs.errors import BuildError, MetagenError, PreflightError

VARIABLE = "METAGEN_PLUGINS"
#: Where a bundle keeps the libraries of its engines.
FOLDER = "plugins"
#: Domain of the nodes that a plugin runs; its op types are the plugins' names.
DOMAIN = "metagen.plugin"

_DESCRIBE = "metagenPlugins"  # the function by which a library says what it is
BUILD_COMMAND = (
    f"cmake -S {Path(__file__).parent / 'cpp'} -B build-plugins -DTENSORRT_INCLUDE_DIR=INCLUDE && "
    "cmake --build build-plugins"
)
WITHOUT = f"build with the op's body instead: {VARIABLE}= metagen-deploy build BUNDLE"


@dataclass(frozen=True, kw_only=True)
class PluginLibrary:
    """One shared library: the major version of the TensorRT it was compiled for, and the ops that it runs."""

    path: Path
    sha256: str
    tensorrt: int
    ops: tuple[str, ...]


def read_library(path: Path) -> PluginLibrary:
    """Load the library and ask it. Raises BuildError for a file that is no plugin library, or not for this machine."""
    try:
        describe = getattr(ctypes.CDLL(str(path.resolve())), _DESCRIBE)
    except (OSError, AttributeError) as error:
        raise BuildError(
            "this is no plugin library of metagen-deploy for this machine",
            where=str(path),
            got=str(error),
            allowed=f"a shared library that exports {_DESCRIBE}",
            fix=f"build it here: {BUILD_COMMAND}; or {WITHOUT}",
        ) from None
    describe.restype = ctypes.c_char_p
    said = json.loads(describe())
    return PluginLibrary(path=path, sha256=digest_file(path), tensorrt=said["tensorrt"], ops=tuple(said["ops"]))


def find_libraries(bundle: Path) -> tuple[PluginLibrary, ...]:
    """What `METAGEN_PLUGINS` names, else what the bundle holds, read. Raises BuildError for what it cannot read."""
    asked = os.environ.get(VARIABLE)
    if asked == "":
        return ()
    place = Path(asked) if asked is not None else bundle / FOLDER
    if asked is not None and not place.exists():
        raise BuildError(
            f"{VARIABLE} names nothing that exists",
            where=VARIABLE,
            got=asked,
            allowed="a plugin library, or a folder of them",
            fix=f"build the library: {BUILD_COMMAND}; or {WITHOUT}",
        )
    files = [place] if place.is_file() else sorted(place.glob("*.so"))
    return tuple(read_library(file) for file in files)


def choose_libraries(
    ops: Iterable[str], libraries: Iterable[PluginLibrary], version: str
) -> Mapping[str, PluginLibrary]:
    """The library of each op for a TensorRT of this version; empty when there is no library at all.

    Raises:
        BuildError: there are libraries, and none of them runs the op with this version.
    """
    there = tuple(libraries)
    if not there:
        return {}
    chosen = {}
    for op in ops:
        serving = [library for library in there if op in library.ops and _serves(library, version)]
        if not serving:
            listed = ", ".join(f"{one.path.name} (TensorRT {one.tensorrt}: {', '.join(one.ops)})" for one in there)
            raise BuildError(
                f"no plugin library runs {op} with TensorRT {version}",
                where=str(there[0].path.parent),
                got=listed,
                allowed=f"a library compiled with the headers of TensorRT {version.split('.', maxsplit=1)[0]}",
                fix=f"build it: {BUILD_COMMAND}; or {WITHOUT}",
            )
        chosen[op] = serving[0]
    return chosen


def _serves(library: PluginLibrary, version: str) -> bool:
    """Plugins are compiled per major version: 8.6 has another face, and later ones promise nothing across majors."""
    return str(library.tensorrt) == version.split(".", maxsplit=1)[0]


def note_bodies(ops: Iterable[str], reason: str) -> str:
    """The line of a build report for ops that a plugin could have run."""
    return f"{', '.join(ops)}: the body in standard operators, no plugin ({reason})"


def locate_files(manifest: Manifest, engine: EngineFile) -> tuple[str, ...]:
    """The bundle's files that are the engine's plugin libraries, by digest.

    Raises:
        PreflightError: one is not there; names its ops, the library and both ways out.
    """
    by_digest = {entry.sha256: name for name, entry in manifest.files.items()}
    missing = [f"{op} (sha256 {digest[:16]}…)" for op, digest in engine.plugins.items() if digest not in by_digest]
    if missing:
        raise PreflightError(
            f"the bundle does not hold the plugin library of {', '.join(missing)} that the engine was built with",
            where=engine.file,
            fix=f"build the library and then the engine: {BUILD_COMMAND}, {VARIABLE}=LIBRARY metagen-deploy build"
            f" BUNDLE; or {WITHOUT}",
        )
    return tuple(dict.fromkeys(by_digest[digest] for digest in engine.plugins.values()))


def load_libraries(trt: Any, paths: Iterable[Path]) -> None:
    """Register the plugins of each library with TensorRT, once a process. Raises PreflightError when it refuses one."""
    registry = trt.get_plugin_registry()
    for path in paths:
        library = _read_for_engine(path)
        if library.sha256 in _loaded:
            continue
        if registry.load_library(str(path.resolve())) is None:
            raise PreflightError(
                f"TensorRT {trt.__version__} does not load the plugin library of {', '.join(library.ops)}",
                where=str(path),
                got=f"compiled with the headers of TensorRT {library.tensorrt}",
                fix=f"build it for this version: {BUILD_COMMAND}; or {WITHOUT}",
            )
        _loaded.add(library.sha256)


#: Digests of the libraries whose plugins this process has registered: a second time would be an error of TensorRT's.
_loaded: set[str] = set()


def _read_for_engine(path: Path) -> PluginLibrary:
    try:
        return read_library(path)
    except MetagenError as error:
        raise PreflightError(error.problem, where=error.where, got=error.got, fix=error.fix) from None
