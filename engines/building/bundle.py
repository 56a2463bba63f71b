"""Compile the typed graphs of a bundle: each for its own target, with a backend that target has.

    manifest --choose--> (graph, typed graph, target, backend)... --verify--> --key--> same key: reuse the engine
                                                                                  else: compile -> .plan -> manifest

The manifest is rewritten after every engine, so that a build that is interrupted keeps what it finished and leaves
nothing half-written. A graph that this machine cannot compile for is listed with the reason (`BuildReport.not_built`);
a graph that a compiler refuses is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from engines.backends.base import CompileRequest, CompileResult
from engines.building.jobs import Job, choose_jobs, refuse_empty
from engines.building.keys import KeyInputs, make_key, name_timing_cache
from engines.building.profiles import describe_profiles, make_profiles, split_profile
from engines.building.ranking import rank_engines
from engines.building.records import (
    REPORT_NAME,
    add_engine,
    forget_files,
    keep_manifest,
    list_engines,
    list_inside,
    read_build_report,
    write_report,
)
from engines.building.sources import Source, choose_source, copy_libraries
from engines.onnx_files.precision import (
    STORED_ONLY,
    lacks_weights,
    measure_front_end,
    measure_shares,
    require_precision,
    require_stored_weights,
)
from engines.onnx_files.read import require_listed_weights
from specs.bundle import EngineFile, Manifest
from specs.bundle.files import digest_file, read_manifest, verify_files, verify_manifest
from specs.errors import OutputError
from specs.progress import Progress, ignore_progress
from specs.report import BuildReport, BuildRow
from specs.system.disk import translate_os_errors

NOTHING_TO_QUANTISE = "int8: nothing to quantise here, no product of this graph has weights"
_TIMING_FOLDER = "timing"


def build_bundle(
    folder: Path,
    *,
    target: str | None = None,
    backend: str | None = None,
    fixed: Sequence[Mapping[str, int]] = (),
    timing_cache: Path | None = None,
    progress: Progress = ignore_progress,
) -> BuildReport:
    """Compile every typed graph of the bundle, or those of one target or one backend.

    Args:
        fixed: dim -> size; an engine more for exactly these sizes, of every graph whose dims are all named.

    Raises:
        BundleError: the bundle is damaged. BuildError: nothing to build here, sizes that fit no graph, or a compiler
            refused.
        GraphError, MissingDependency, OutputError: as they say.
    """
    manifest = read_manifest(folder)
    jobs, not_built = choose_jobs(manifest, target, backend, fixed)
    if not jobs:
        refuse_empty(folder, not_built)
    if not os.access(folder, os.W_OK):
        raise OutputError("the bundle cannot be written to", where=str(folder), fix="copy it to a folder of yours")
    progress("reading every file", None)
    verify_manifest(folder)
    verify_files(folder, manifest, _list_sources(manifest))
    earlier = {row.file: row for row in read_build_report(folder)}
    rows = []
    for index, job in enumerate(jobs):
        shown = _scale_progress(progress, job, index, len(jobs))
        manifest, row = _build_one(folder, manifest, job, timing_cache, earlier, shown)
        rows.append(row)
        earlier[row.file] = row
        manifest = write_report(folder, manifest, tuple(earlier.values()))
    rows = _rank(folder, manifest, jobs, rows, earlier)
    return BuildReport(bundle=manifest.name, rows=tuple(rows), not_built=not_built)


def _rank(
    folder: Path, manifest: Manifest, jobs: list[Job], rows: list[BuildRow], earlier: dict[str, BuildRow]
) -> list[BuildRow]:
    """Put a precision that is narrower and no faster behind the others, where this machine can run what it built."""
    built = [row.file for job, row in zip(jobs, rows, strict=True) if job.available.can_run and not row.reused]
    ranked, remarks = rank_engines(folder, manifest, built)
    if not remarks:
        return rows
    for file, remark in remarks.items():
        if file in earlier:
            earlier[file] = replace(earlier[file], notes=(*earlier[file].notes, remark))
    write_report(folder, ranked, tuple(earlier.values()))
    return [replace(row, notes=earlier[row.file].notes) for row in rows]


def _list_sources(manifest: Manifest) -> list[str]:
    """Every file but those that building writes: a damaged one of those is made again."""
    made = {engine.file for _, engine in list_engines(manifest)} | {REPORT_NAME}
    return [file for file in manifest.files if file not in made and not file.startswith(f"{_TIMING_FOLDER}/")]


def _build_one(
    folder: Path,
    manifest: Manifest,
    job: Job,
    timing_cache: Path | None,
    earlier: dict[str, BuildRow],
    progress: Progress,
) -> tuple[Manifest, BuildRow]:
    typed, backend, file = job.typed, job.backend, job.file
    chosen = choose_source(folder, typed, backend, job.available)
    source = folder / chosen.file
    progress("checking the graph's files", 0.0)
    weights = require_listed_weights(folder, manifest, chosen.file)
    external = {str(PurePosixPath(name).relative_to(PurePosixPath(typed.file).parent)): name for name in weights}
    cache, notes = _choose_timing_cache(folder, job, timing_cache)
    request = _make_request(folder, manifest, job, chosen, cache)
    notes += (*chosen.notes, *describe_profiles(request.profile, request.wide_profile), *job.describe_sizes())
    key = _make_key(manifest, job, request, external, chosen)
    old = next((e for e in job.graph.engines if e.file == file and e.key == key), None)
    if old is not None and _is_whole(folder, manifest, file):
        return manifest, _make_row(job, file, None, manifest.files[file].bytes, old, earlier.get(file), notes)
    sizes = {name: bounds[1] for name, bounds in manifest.dims.items()}
    shares, front_end = measure_shares(source, sizes), measure_front_end(source, sizes, typed.front_end)
    own = typed.precision == job.graph.precision != "fp32"  # of a user's file, which nobody asked to compute in it
    bare = typed.precision == "int8" and lacks_weights(source)
    if bare:
        notes = (*notes, NOTHING_TO_QUANTISE)
    stored_only = (typed.lowering, typed.precision) in STORED_ONLY
    asked = not own and not bare and not stored_only
    if stored_only and not own:
        require_stored_weights(source, kept=request.keep_fp32, where=str(source))
    if asked:
        require_precision(shares, typed.precision, where=str(source), front_end=front_end)
    manifest = forget_files(folder, manifest, list_inside(folder, cache))  # the compiler extends it in place
    try:
        result = backend.compile(request, progress)
        if result.shares is not None and asked:
            where = f"the engine of {typed.file}"
            spared = measure_front_end(source, _blur_sizes(job, sizes), typed.front_end)
            require_precision(result.shares, typed.precision, where=where, front_end=spared)
        result = replace(result, shares=result.shares or shares)
        if request.output is not None:
            if libraries := copy_libraries(folder, manifest, chosen):
                manifest = keep_manifest(folder, replace(manifest, files={**manifest.files, **libraries}))
            manifest = add_engine(folder, manifest, job, request.output, file, key, result, cache, chosen.digests)
    finally:
        if request.output is not None:
            request.output.unlink(missing_ok=True)
    return manifest, _make_row(job, file, result, result.bytes, None, None, notes)


def _blur_sizes(job: Job, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes as a compiler's network is counted, which does not tell dims apart: all as the largest of the inputs."""
    shapes = [tensor.shape for tensor in job.graph.inputs]
    largest = max(
        (sizes.get(size, 1) if isinstance(size, str) else size for shape in shapes for size in shape), default=1
    )
    return dict.fromkeys(sizes, largest)


def _make_request(folder: Path, manifest: Manifest, job: Job, chosen: Source, cache: Path | None) -> CompileRequest:
    typed, backend, target = job.typed, job.backend, job.target
    profile = make_profiles(job.graph.inputs, job.narrow(manifest.dims), where=f"graph '{job.graph.name}'")
    profile, wide = split_profile(profile) if backend.takes_two_profiles else (profile, ())
    return CompileRequest(
        model=folder / chosen.file,
        output=_name_temporary(folder / job.file) if backend.writes_engines else None,
        precision=typed.precision,
        profile=profile,
        wide_profile=wide,
        compute_capabilities=(target.compute_capability,) if backend.writes_engines else (),
        keep_fp32=chosen.keep_fp32,
        workspace_bytes=(target.memory_bytes - target.reserved_bytes) // 2 if backend.writes_engines else None,
        timing_cache=cache,
        plugins=tuple(dict.fromkeys(library.path for library in chosen.libraries.values())),
    )


def _is_whole(folder: Path, manifest: Manifest, file: str) -> bool:
    entry, path = manifest.files.get(file), folder / file
    return entry is not None and path.is_file() and digest_file(path) == entry.sha256


def _choose_timing_cache(folder: Path, job: Job, given: Path | None) -> tuple[Path | None, tuple[str, ...]]:
    if not job.backend.has_timing_cache:
        unused = f"{job.backend.name} has no timing cache: {given} is neither read nor written"
        return None, (unused,) if given and job.backend.writes_engines else ()
    if given is not None:
        return given, ()
    timing = folder / _TIMING_FOLDER
    with translate_os_errors(timing):
        timing.mkdir(exist_ok=True)
    capability = job.target.compute_capability
    return name_timing_cache(
        timing, backend=job.backend.name, version=job.available.version, compute_capability=capability
    ), ()


def _make_key(manifest: Manifest, job: Job, request: CompileRequest, external: dict[str, str], source: Source) -> str:
    return make_key(
        KeyInputs(
            model_sha256=manifest.files[source.file].sha256,
            external_sha256={name: manifest.files[file].sha256 for name, file in external.items()},
            profile=request.profile,
            wide_profile=request.wide_profile,
            precision=request.precision,
            keep_fp32=request.keep_fp32,
            plugins=source.digests,
            backend=job.backend.name,
            backend_version=job.available.version,
            compute_capabilities=request.compute_capabilities,
            gpu=job.available.device if job.backend.has_timing_cache else "",
            workspace_bytes=request.workspace_bytes,
            optimization_level=request.optimization_level,
        )
    )


def _name_temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def _make_row(
    job: Job,
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


def _scale_progress(progress: Progress, job: Job, index: int, count: int) -> Progress:
    prefix = " ".join((f"{job.graph.name} for {job.typed.target} {job.typed.precision}", *job.describe_sizes()))

    def show(message: str, fraction: float | None) -> None:
        progress(f"{prefix}: {message}", None if fraction is None else (index + fraction) / count)

    return show
