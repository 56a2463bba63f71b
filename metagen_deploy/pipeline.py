"""The one path, a function a verb. Nothing but calls to the floors below, in the order in which things happen.

export   source -> staged folder -> check -> bundle          build    bundle -> engines -> report
check    bundle -> parity report                             bench    bundle -> latency reports
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from metagen_deploy.admission import (
    admit_targets,
    is_made_of,
    refuse_folder,
    refuse_repeats,
    refuse_unimplemented,
    require_any_int8,
    require_asked_precision,
)
from metagen_deploy.memory import require_host_memory
from metagen_deploy.sources import is_model, load_source
from metagen_deploy.verdict import raise_first_failure
from specs.bundle import Manifest
from specs.errors import translate_import_error
from specs.progress import Progress
from specs.report import BuildReport, LatencyReport, ParityReport
from specs.schema import Dim, Precision, Spec
from specs.targets import Target, load_target


def export(
    source: str,
    *,
    output: Path,
    targets: Sequence[str] = (),
    precisions: Sequence[Precision] = (),
    weights: Path | None = None,
    calibration: Path | None = None,
    dims: Mapping[str, Dim] | None = None,
    max_host_ram_bytes: int | None = None,
    progress: Progress,
) -> tuple[Manifest, ParityReport]:
    """Turn a spec (shipped name, `name:variant` or YAML file) or an ONNX file into a verified bundle at `output`.

    Nothing appears at `output` unless every graph agrees with its golden data.

    Args:
        max_host_ram_bytes: refuse before starting when the estimate is above it.

    Raises:
        ParityError: a graph is outside tolerance; carries the report's first failure.
        MetagenError: anything else of the user's making.
    """
    refuse_unimplemented(precisions)
    refuse_repeats("--target", targets)
    refuse_repeats("--precision", precisions)
    refuse_folder(source)
    if max_host_ram_bytes is not None:
        require_host_memory(source, max_host_ram_bytes)
    from engines.checking.apart import BundleChecker
    from engines.checking.parity import write_report
    from exporters.garbage import collect_rarely
    from exporters.staging import stage_bundle

    # rarely from here on: importing torch makes most objects of all
    with collect_rarely(), stage_bundle(output) as folder, BundleChecker() as checker:
        if is_model(source):
            loaded = [load_target(name) for name in targets or ("cpu",)]
            checker.start()
            manifest = _write_model(Path(source), folder, loaded, precisions, calibration, dims or {}, progress)
        else:
            spec = load_overridden(source, targets=targets, weights=weights, calibration=calibration, dims=dims)
            admitted = admit_targets(spec, precisions)  # before torch is imported, which takes seconds
            checker.start()
            manifest = _write_spec(spec, folder, admitted, precisions, max_host_ram_bytes, progress)
        report = checker.check(folder, progress=progress)
        write_report(folder, report)
        if not report.passed:
            own_file = is_model(source)
            raise_first_failure(report, own_file=own_file, calibrated=calibration is not None)
    return manifest, report


def _write_spec(
    spec: Spec,
    folder: Path,
    targets: Sequence[Target],
    precisions: Sequence[Precision],
    max_host_ram_bytes: int | None,
    progress: Progress,
) -> Manifest:
    try:
        from exporters.export import export_spec
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for="export") from error
    manifest = export_spec(
        spec,
        folder,
        targets=targets,
        precisions=precisions,
        max_host_ram_bytes=max_host_ram_bytes,
        progress=progress,
    )
    require_any_int8(folder, manifest)
    return manifest


def _write_model(
    source: Path,
    folder: Path,
    targets: Sequence[Target],
    precisions: Sequence[Precision],
    calibration: Path | None,
    dims: Mapping[str, Dim],
    progress: Progress,
) -> Manifest:
    try:
        from exporters.onnx_models.export import export_model
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for="export") from error
    from engines.onnx_files.precision import find_own_precision

    manifest = export_model(
        source,
        folder,
        targets=targets,
        precisions=precisions,
        calibration=calibration,
        dims=dims,
        find_precision=find_own_precision,
        progress=progress,
    )
    require_asked_precision(folder, manifest)
    return manifest


def build(
    source: Path,
    *,
    target: str | None = None,
    backend: str | None = None,
    fixed: Sequence[Mapping[str, int]] = (),
    timing_cache: Path | None = None,
    progress: Progress,
) -> BuildReport:
    """Compile the engines of a bundle. An .onnx file first becomes a bundle beside it, `<stem>.bundle`.

    A bundle that was made of this very file, and has the target, is taken as it is: it may hold more than this makes.
    """
    from engines.building.bundle import build_bundle

    if is_model(source) and not source.is_dir():
        bundle = source.with_suffix(".bundle")
        if not is_made_of(bundle, source, target=target):
            export(str(source), output=bundle, targets=(target,) if target else (), progress=progress)
        source = bundle
    return build_bundle(
        source, target=target, backend=backend, fixed=fixed, timing_cache=timing_cache, progress=progress
    )


def check(folder: Path, *, backends: tuple[str, ...] | None = None, progress: Progress) -> ParityReport:
    """Compare every stage of a bundle with its golden data, and keep the report in the bundle when it is writable."""
    from engines.checking.parity import check_bundle, write_report

    report = check_bundle(folder, backends=backends, progress=progress)
    write_report(folder, report)
    return report


def bench(folder: Path, *, against: str | None = None, progress: Progress) -> tuple[LatencyReport, ...]:
    """Measure latency on this machine, beside `against` ("torch" or "stock-onnx") when given."""
    from metagen_deploy.bench import bench_bundle

    return bench_bundle(folder, against=against, progress=progress)


def load_extensions(files: Sequence[Path]) -> None:
    """Run files of the user's that register kinds of components or fusion strategies."""
    if not files:
        return
    try:
        from specs.composing.extensions import load_extension
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for="an extension") from error
    for file in files:
        load_extension(file.absolute())


def load_overridden(
    source: str,
    *,
    targets: Sequence[str] = (),
    weights: Path | None = None,
    calibration: Path | None = None,
    dims: Mapping[str, Dim] | None = None,
) -> Spec:
    """Load a spec and put the command line's choices in place of its own."""
    from specs.load import override_spec

    spec = load_source(source)
    return override_spec(spec, targets=tuple(targets), weights=weights, calibration=calibration, dims=dims)
