"""The one path, a function a verb. Nothing but calls to the floors below, in the order in which things happen.

export   source -> staged folder -> check -> bundle          build    bundle -> engines -> report
check    bundle -> parity report                             bench    bundle -> latency reports
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from metagen_deploy.memory import require_host_memory
from specs.bundle import MANIFEST_NAME, SPEC_NAME, Manifest, digest_file, read_manifest
from specs.errors import (
    BuildError,
    GraphError,
    MetagenError,
    OutputError,
    ParityError,
    SpecError,
    TargetError,
    translate_import_error,
)
from specs.report import BuildReport, LatencyReport, ParityReport, ParityRow
from specs.schema import IMPLEMENTED_PRECISIONS, Dim, Precision, Spec
from specs.targets import Target, load_target, require_fit

Progress = Callable[[str, "float | None"], None]


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
    from engines.parity import write_report
    from engines.parity_apart import check_bundle_apart
    from exporters.staging import stage_bundle

    with stage_bundle(output) as folder:
        if source.endswith(".onnx"):
            manifest = _write_model(Path(source), folder, targets, precisions, calibration, dims or {}, progress)
        else:
            spec = load_overridden(source, targets=targets, weights=weights, calibration=calibration, dims=dims)
            manifest = _write_spec(spec, folder, precisions, progress)
        report = check_bundle_apart(folder, progress=progress)
        write_report(folder, report)
        if not report.passed:
            raise_first_failure(report)
    return manifest, report


def _write_spec(spec: Spec, folder: Path, precisions: Sequence[Precision], progress: Progress) -> Manifest:
    targets = admit_targets(spec, precisions)  # before torch is imported, which takes seconds
    try:
        from exporters.export import export_spec
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for="export") from error
    return export_spec(spec, folder, targets=targets, precisions=precisions, progress=progress)


def _write_model(
    source: Path,
    folder: Path,
    targets: Sequence[str],
    precisions: Sequence[Precision],
    calibration: Path | None,
    dims: Mapping[str, Dim],
    progress: Progress,
) -> Manifest:
    loaded = [load_target(name) for name in targets or ("cpu",)]
    try:
        from exporters.export_model import export_model
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for="export") from error
    from engines.precision import find_own_precision

    manifest = export_model(
        source,
        folder,
        targets=loaded,
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
    timing_cache: Path | None = None,
    progress: Progress,
) -> BuildReport:
    """Compile the engines of a bundle. An .onnx file first becomes a bundle beside it, `<stem>.bundle`.

    A bundle that was made of this very file, and has the target, is taken as it is: it may hold more than this makes.
    """
    from engines.build import build_bundle

    if source.suffix == ".onnx" and not source.is_dir():
        bundle = source.with_suffix(".bundle")
        if not is_made_of(bundle, source, target=target):
            export(str(source), output=bundle, targets=(target,) if target else (), progress=progress)
        source = bundle
    return build_bundle(source, target=target, backend=backend, timing_cache=timing_cache, progress=progress)


def is_made_of(bundle: Path, source: Path, *, target: str | None) -> bool:
    """Whether a bundle is that of an ONNX file, with graphs for `target`. One made of a spec is refused."""
    if not (bundle / MANIFEST_NAME).is_file() or not source.is_file():
        return False
    if (bundle / SPEC_NAME).is_file():
        raise OutputError(
            f"the bundle beside {source.name} was made of a spec, and would be replaced",
            where=str(bundle),
            fix=f"metagen-deploy export {source} -o BUNDLE, then metagen-deploy build BUNDLE",
        )
    manifest = read_manifest(bundle)
    has_target = target is None or any(t.target == target for graph in manifest.graphs for t in graph.typed)
    return manifest.spec_digest == digest_file(source) and has_target


def check(folder: Path, *, backends: tuple[str, ...] | None = None, progress: Progress) -> ParityReport:
    """Compare every stage of a bundle with its golden data, and keep the report in the bundle when it is writable."""
    from engines.parity import check_bundle, write_report

    report = check_bundle(folder, backends=backends, progress=progress)
    write_report(folder, report)
    return report


def bench(folder: Path, *, against: str | None = None, progress: Progress) -> tuple[LatencyReport, ...]:
    """Measure latency on this machine, beside `against` ("torch" or "stock-onnx") when given."""
    from metagen_deploy.bench import bench_bundle

    return bench_bundle(folder, against=against, progress=progress)


def load_overridden(
    source: str,
    *,
    targets: Sequence[str] = (),
    weights: Path | None = None,
    calibration: Path | None = None,
    dims: Mapping[str, Dim] | None = None,
) -> Spec:
    """Load a spec and put the command line's choices in place of its own."""
    from specs.load import load_spec, override_spec

    return override_spec(load_spec(source), targets=tuple(targets), weights=weights, calibration=calibration, dims=dims)


def admit_targets(spec: Spec, precisions: Sequence[Precision]) -> list[Target]:
    """The spec's targets, each proved large enough and able to run every precision that is asked.

    Raises:
        TargetError: with the numbers.
    """
    asked = [spec.model_copy(update={"precision": {"default": p}}) for p in precisions] or [spec]
    targets = [load_target(name) for name in spec.targets]
    for target in targets:
        for one in asked:
            require_fit(one, target)
    return targets


def refuse_folder(source: str) -> None:
    """A folder is neither a spec nor an ONNX file."""
    if os.path.isfile(os.path.join(source, MANIFEST_NAME)):  # noqa: PTH113, PTH118 - pathlib raises for a name too long
        raise SpecError("this is a bundle already", where=source, fix=f"metagen-deploy build {source}")
    if os.path.isdir(source):  # noqa: PTH112
        raise SpecError(
            "checkpoint folders are not taken yet",
            where=source,
            allowed="a shipped spec (see `metagen-deploy specs`), a spec's YAML file, or an .onnx file",
            fix="write a spec whose `weights: {source: ...}` names the .safetensors, or export the model to ONNX",
        )


def refuse_repeats(option: str, values: Sequence[str]) -> None:
    """A value that is given twice is a slip, and would be made twice under one name."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise TargetError(f"{option} {value} is given twice", fix="keep one of the two")


def refuse_unimplemented(precisions: Sequence[Precision]) -> None:
    """Precisions that the language reserves but no pass writes are errors, not silent fp32."""
    for precision in precisions:
        if precision not in IMPLEMENTED_PRECISIONS:
            raise TargetError(
                f"precision '{precision}' is not implemented yet",
                where="--precision",
                allowed=", ".join(IMPLEMENTED_PRECISIONS),
                fix="choose one of these",
            )


def require_asked_precision(folder: Path, manifest: Manifest) -> None:
    """A precision that a user's file could not be given is an error, not a bundle of another precision.

    Raises:
        GraphError: with the shares of what it computes in.
    """
    from engines.precision import measure_shares, require_precision

    sizes = {name: opt for name, (_, opt, _) in manifest.dims.items()}
    for graph in manifest.graphs:
        for typed in graph.typed:
            if typed.precision == graph.precision:
                continue
            try:
                require_precision(measure_shares(folder / typed.file, sizes), typed.precision, where=typed.file)
            except BuildError as error:
                raise GraphError(
                    f"{typed.precision} was asked for, and {typed.lowering} can compute too little of this model in it",
                    where=f"graph '{graph.name}' for target '{typed.target}'",
                    got=error.got,
                    allowed=error.allowed,
                    fix="leave --precision away, or ask for another one or another target",
                ) from None


def _advise_on(row: ParityRow) -> str:
    if row.precision == "int8":
        return "give calibration data that is like the real inputs, or ask for a higher precision"
    if row.precision == "fp32":
        return "this precision leaves no room for it: report it with the model, or export for another target"
    return "ask for a higher precision for this component, or widen the spec's `parity` if the task allows it"


def raise_first_failure(report: ParityReport) -> None:
    """Turn a failed report into an error that names the worst offender."""
    for row in report.rows:
        if not row.passed:
            divergence = report.divergences.get(row.stage)
            raise ParityError(
                f"output '{row.difference.name}' of {row.stage} is outside tolerance: {row.reason}",
                where=f"graph '{row.graph}' on {row.backend}"
                + (f", first diverging at '{divergence.tensor}' ({divergence.module_path})" if divergence else ""),
                got=f"relative error {row.needed_relative:.3g}, cosine {row.difference.cosine:.6f}",
                allowed=f"relative error {row.limit_relative:.3g}, cosine {row.limit_cosine:.6f}",
                fix=_advise_on(row),
            )
    for metric in report.metrics:
        if not metric.passed:
            raise ParityError(
                f"{metric.metric} of {metric.stage} fell from {metric.reference:.2%} to {metric.value:.2%}",
                where=f"graph '{metric.graph}' on {metric.backend}",
                allowed=f"a loss of {metric.max_loss:.2%}",
                fix="ask for a higher precision for this component, or give it better calibration data",
            )
    raise MetagenError("nothing could be compared on this machine", fix="see what is missing: metagen-deploy doctor")
