"""A bundle's records while its engines are made: they tell the truth at every moment, whenever a build is cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from engines.backends.base import CompileResult
from engines.building.jobs import Job
from specs.bundle import EngineFile, FileEntry, Graph, Manifest
from specs.bundle.files import digest_file, write_manifest
from specs.report import BuildReport, BuildRow, PrecisionShares
from specs.system.disk import translate_os_errors

REPORT_NAME = "reports/build.json"


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


def list_engines(manifest: Manifest) -> Iterator[tuple[Graph, EngineFile]]:
    """Every compiled engine of a bundle with its graph."""
    for graph in manifest.graphs:
        for engine in graph.engines:
            yield graph, engine


def add_engine(
    folder: Path,
    manifest: Manifest,
    job: Job,
    compiled: Path,
    file: str,
    key: str,
    result: CompileResult,
    cache: Path | None,
    digests: Mapping[str, str],
) -> Manifest:
    """Move the engine to its place and list it; what lay there is out of the manifest before it is overwritten."""
    manifest = forget_files(folder, manifest, [file])
    with translate_os_errors(folder / file):
        compiled.replace(folder / file)
    engine = EngineFile(
        target=job.typed.target,
        precision=job.typed.precision,
        backend=job.backend.name,
        backend_version=result.backend_version,
        compute_capability=job.target.compute_capability,
        gpu=result.gpu,
        plugins=digests,
        sizes=job.sizes,
        shares_profiles=job.backend.name == "tensorrt",  # every build asks for it
        file=file,
        key=key,
        build_seconds=result.seconds,
    )
    graphs = tuple(
        replace(g, engines=(*(e for e in g.engines if e.file != file), engine)) if g.name == job.graph.name else g
        for g in manifest.graphs
    )
    entries = {
        made: FileEntry(bytes=(folder / made).stat().st_size, sha256=digest_file(folder / made))
        for made in (file, *list_inside(folder, cache))
    }
    return keep_manifest(folder, replace(manifest, graphs=graphs, files={**manifest.files, **entries}))


def forget_files(folder: Path, manifest: Manifest, files: list[str]) -> Manifest:
    """Take what is about to be overwritten out of the manifest, so that it tells the truth at every moment."""
    if not any(file in manifest.files for file in files):
        return manifest
    graphs = tuple(replace(g, engines=tuple(e for e in g.engines if e.file not in files)) for g in manifest.graphs)
    entries = {name: entry for name, entry in manifest.files.items() if name not in files}
    return keep_manifest(folder, replace(manifest, graphs=graphs, files=entries))


def write_report(folder: Path, manifest: Manifest, rows: tuple[BuildRow, ...]) -> Manifest:
    """Keep every row, of earlier builds too, in the bundle."""
    return keep_manifest(folder, manifest, {REPORT_NAME: BuildReport(bundle=manifest.name, rows=rows).to_json() + "\n"})


def keep_manifest(folder: Path, manifest: Manifest, texts: Mapping[str, str] | None = None) -> Manifest:
    """The manifest, and `texts` by file, written at once. Raises OutputError."""
    with translate_os_errors(folder):
        return write_manifest(folder, manifest, texts)


def list_inside(folder: Path, cache: Path | None) -> list[str]:
    """The timing cache's path in the bundle, when it is there."""
    inside = cache is not None and cache.is_file() and cache.is_relative_to(folder)
    return [cache.relative_to(folder).as_posix()] if cache is not None and inside else []
