"""Compile the typed graphs of a bundle: each for its own target, with a backend that target has.

    manifest --choose--> (graph, typed graph, target, backend)... --verify--> --key--> same key: reuse the engine
                                                                                  else: compile -> .plan -> manifest

The manifest is rewritten after every engine, so that a build that is interrupted keeps what it finished and leaves
nothing half-written. A graph that this machine cannot compile for is listed with the reason (`BuildReport.not_built`);
a graph that a compiler refuses is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from engines.backends import load_backend
from engines.backends.base import Availability, Backend, CompileRequest, CompileResult, Progress, ignore_progress
from engines.onnx_file import read_onnx
from engines.precision import measure_shares, require_precision
from engines.profiles import make_profiles
from engines.timing_cache import KeyInputs, make_key, name_timing_cache
from specs.bundle import (
    EngineFile,
    FileEntry,
    Graph,
    Manifest,
    TypedGraph,
    digest_file,
    read_manifest,
    verify_files,
    write_manifest,
)
from specs.errors import BuildError, OutputError, name_nearest
from specs.report import BuildReport, BuildRow, PrecisionShares
from specs.targets import Target, load_target

REPORT_NAME = "reports/build.json"
_TIMING_FOLDER = "timing"


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One engine to make."""

    graph: Graph
    typed: TypedGraph
    target: Target
    backend: Backend
    available: Availability


def build_bundle(
    folder: Path,
    *,
    target: str | None = None,
    backend: str | None = None,
    timing_cache: Path | None = None,
    progress: Progress = ignore_progress,
) -> BuildReport:
    """Compile every typed graph of the bundle, or those of one target or one backend.

    Raises:
        BundleError: the bundle is damaged. BuildError: nothing to build here, or a compiler refused.
        GraphError, MissingDependency, OutputError: as they say.
    """
    manifest = read_manifest(folder)
    jobs, not_built = _choose_jobs(manifest, target, backend)
    if not jobs:
        _refuse_empty(folder, not_built)
    if not os.access(folder, os.W_OK):
        raise OutputError("the bundle cannot be written to", where=str(folder), fix="copy it to a folder of yours")
    earlier = {row.file: row for row in read_build_report(folder)}
    rows = []
    for index, job in enumerate(jobs):
        shown = _scale_progress(progress, job, index, len(jobs))
        manifest, row = _build_one(folder, manifest, job, timing_cache, earlier, shown)
        rows.append(row)
        earlier[row.file] = row
        manifest = _write_report(folder, manifest, tuple(earlier.values()))
    return BuildReport(bundle=manifest.name, rows=tuple(rows), not_built=not_built)


def read_build_report(folder: Path) -> tuple[BuildRow, ...]:
    """What earlier builds recorded; () when there is nothing that can be read."""
    path = folder / REPORT_NAME
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return tuple(
            BuildRow(
                **{
                    **row,
                    "notes": tuple(row["notes"]),
                    "shares": PrecisionShares(**row["shares"]) if row["shares"] else None,
                }
            )
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _choose_jobs(manifest: Manifest, target: str | None, backend: str | None) -> tuple[list[_Job], dict[str, str]]:
    """The jobs this machine can do, and the reason for each typed graph it cannot."""
    typed_graphs = [(graph, typed) for graph in manifest.graphs for typed in graph.typed]
    known = {typed.target for _, typed in typed_graphs}
    if target is not None and target not in known:
        raise BuildError(
            f"this bundle has no graph for the target '{target}'",
            allowed=name_nearest(target, known),
            fix=f"export it for that target too: --target {target}",
        )
    if backend is not None:
        load_backend(backend)  # refuses an unknown name
    jobs, not_built = [], {}
    for graph, typed in typed_graphs:
        if target is None or typed.target == target:
            found = _choose_backend(load_target(typed.target), backend)
            if isinstance(found, str):
                not_built[typed.file] = found
            else:
                chosen, available = found
                jobs.append(
                    _Job(
                        graph=graph,
                        typed=typed,
                        target=load_target(typed.target),
                        backend=chosen,
                        available=available,
                    )
                )
    return jobs, not_built


def _choose_backend(target: Target, wanted: str | None) -> tuple[Backend, Availability] | str:
    """The first backend of the target that can compile for it here, or why there is none."""
    if wanted is not None and wanted not in target.backends:
        return f"target '{target.name}' is served by {', '.join(target.backends)}, not by {wanted}"
    reasons = []
    for name in (wanted,) if wanted else target.backends:
        backend = load_backend(name)
        available = backend.probe()
        reason = backend.describe_capability(target.compute_capability) if available.version else ""
        if available.can_compile and not reason:
            return backend, available
        reasons.append(f"{name}: {reason or available.reason}" + ("" if reason else f" ({available.fix})"))
    return "; ".join(reasons)


def _refuse_empty(folder: Path, not_built: dict[str, str]) -> None:
    reasons = "\n           ".join(dict.fromkeys(not_built.values()))
    raise BuildError(
        "nothing of this bundle can be compiled on this machine" if not_built else "this bundle has no typed graphs",
        where=str(folder),
        got=reasons or None,
        fix="build it on the machine it is for; see what this one can do: metagen-deploy doctor",
    )


def _build_one(
    folder: Path,
    manifest: Manifest,
    job: _Job,
    timing_cache: Path | None,
    earlier: dict[str, BuildRow],
    progress: Progress,
) -> tuple[Manifest, BuildRow]:
    typed, backend = job.typed, job.backend
    source = folder / typed.file
    progress("checking the graph's files", 0.0)
    verify_files(folder, manifest, [typed.file])
    external = {name: _place_beside(typed.file, name) for name in read_onnx(source).list_external_files()}
    verify_files(folder, manifest, external.values())
    file = typed.file.removesuffix(".onnx") + f".{backend.name}.plan" if backend.writes_engines else typed.file
    cache, notes = _choose_timing_cache(folder, job, timing_cache)
    request = CompileRequest(
        model=source,
        output=folder / file if backend.writes_engines else None,
        precision=typed.precision,
        profile=make_profiles(job.graph.inputs, manifest.dims, where=f"graph '{job.graph.name}'"),
        compute_capabilities=(job.target.compute_capability,) if backend.writes_engines else (),
        keep_fp32=tuple(entry.split(":")[0] for entry in typed.keep_fp32),
        workspace_bytes=(job.target.memory_bytes - job.target.reserved_bytes) // 2 if backend.writes_engines else None,
        timing_cache=cache,
    )
    key = _make_key(manifest, job, request, external)
    old = next((e for e in job.graph.engines if e.file == file and e.key == key), None)
    if old is not None and _is_whole(folder, manifest, file):
        return manifest, _make_row(job, file, None, manifest.files[file].bytes, old, earlier.get(file), notes)
    shares = measure_shares(source, {name: bounds[1] for name, bounds in manifest.dims.items()})
    require_precision(shares, typed.precision, where=str(source))
    result = backend.compile(request, progress)
    if result.shares is not None:
        require_precision(result.shares, typed.precision, where=f"the engine of {typed.file}")
    result = replace(result, shares=result.shares or shares)
    if backend.writes_engines:
        manifest = _add_engine(folder, manifest, job, file, key, result, cache)
    return manifest, _make_row(job, file, result, result.bytes, None, None, notes)


def _place_beside(file: str, location: str) -> str:
    return str(PurePosixPath(file).parent / location)


def _is_whole(folder: Path, manifest: Manifest, file: str) -> bool:
    entry, path = manifest.files.get(file), folder / file
    return entry is not None and path.is_file() and digest_file(path) == entry.sha256


def _choose_timing_cache(folder: Path, job: _Job, given: Path | None) -> tuple[Path | None, tuple[str, ...]]:
    if not job.backend.has_timing_cache:
        unused = f"{job.backend.name} has no timing cache: {given} is neither read nor written"
        return None, (unused,) if given and job.backend.writes_engines else ()
    if given is not None:
        return given, ()
    timing = folder / _TIMING_FOLDER
    timing.mkdir(exist_ok=True)
    capability = job.target.compute_capability
    return name_timing_cache(
        timing, backend=job.backend.name, version=job.available.version, compute_capability=capability
    ), ()


def _make_key(manifest: Manifest, job: _Job, request: CompileRequest, external: dict[str, str]) -> str:
    return make_key(
        KeyInputs(
            model_sha256=manifest.files[job.typed.file].sha256,
            external_sha256={name: manifest.files[file].sha256 for name, file in external.items()},
            profile=request.profile,
            precision=request.precision,
            keep_fp32=request.keep_fp32,
            backend=job.backend.name,
            backend_version=job.available.version,
            compute_capabilities=request.compute_capabilities,
            gpu=job.available.device if job.backend.has_timing_cache else "",
            workspace_bytes=request.workspace_bytes,
            optimization_level=request.optimization_level,
        )
    )


def _add_engine(
    folder: Path, manifest: Manifest, job: _Job, file: str, key: str, result: CompileResult, cache: Path | None
) -> Manifest:
    engine = EngineFile(
        target=job.typed.target,
        precision=job.typed.precision,
        backend=job.backend.name,
        backend_version=result.backend_version,
        compute_capability=job.target.compute_capability,
        gpu=result.gpu,
        file=file,
        key=key,
        build_seconds=result.seconds,
    )
    graphs = tuple(
        replace(g, engines=(*(e for e in g.engines if e.file != file), engine)) if g.name == job.graph.name else g
        for g in manifest.graphs
    )
    made = [file]
    if cache is not None and cache.is_file() and cache.is_relative_to(folder):
        made.append(cache.relative_to(folder).as_posix())
    return _write_manifest(folder, replace(manifest, graphs=graphs), made)


def _write_manifest(folder: Path, manifest: Manifest, made: list[str]) -> Manifest:
    """Write the manifest with fresh digests of the files just made."""
    entries = {
        file: FileEntry(bytes=(folder / file).stat().st_size, sha256=digest_file(folder / file)) for file in made
    }
    manifest = replace(manifest, files={**manifest.files, **entries})
    try:
        write_manifest(folder, manifest)
    except OSError as error:
        raise OutputError("the manifest could not be written", where=str(folder), got=str(error)) from None
    return manifest


def _write_report(folder: Path, manifest: Manifest, rows: tuple[BuildRow, ...]) -> Manifest:
    path = folder / REPORT_NAME
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_text(BuildReport(bundle=manifest.name, rows=rows).to_json() + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError("the build report could not be written", where=str(path), got=str(error)) from None
    return _write_manifest(folder, manifest, [REPORT_NAME])


def _make_row(
    job: _Job,
    file: str,
    result: CompileResult | None,
    size: int,
    old: EngineFile | None,
    recorded: BuildRow | None,
    notes: tuple[str, ...],
) -> BuildRow:
    """A row of a compiled engine (`result`), or of one taken unchanged (`old`, with what its build recorded)."""
    version = old.backend_version if old else result.backend_version if result else ""
    said = recorded.notes if recorded else result.notes if result else ()
    unrun = () if job.available.can_run else (f"compiled only: {job.available.reason}",)
    return BuildRow(
        graph=job.graph.name,
        target=job.typed.target,
        backend=job.backend.name,
        backend_version=version,
        precision=job.typed.precision,
        file=file,
        bytes=size,
        seconds=old.build_seconds if old else result.seconds if result else 0.0,
        reused=old is not None,
        notes=tuple(dict.fromkeys((*said, *notes, *unrun))),
        shares=recorded.shares if recorded else result.shares if result else None,
    )


def _scale_progress(progress: Progress, job: _Job, index: int, count: int) -> Progress:
    prefix = f"{job.graph.name} for {job.typed.target} {job.typed.precision}"

    def show(message: str, fraction: float | None) -> None:
        progress(f"{prefix}: {message}", None if fraction is None else (index + fraction) / count)

    return show


def list_engines(manifest: Manifest) -> Iterator[tuple[Graph, EngineFile]]:
    """Every compiled engine of a bundle with its graph."""
    for graph in manifest.graphs:
        for engine in graph.engines:
            yield graph, engine
