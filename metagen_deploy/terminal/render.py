"""Reports as tables: what was exported, built, measured and found. Nothing here measures or judges.

One function a report; the numbers come from `specs.report` and `specs.bundle`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text

from metagen_deploy.terminal.tables import format_bytes, format_share, mark, print_line, print_table
from specs.bundle import Manifest
from specs.report import BuildReport, LatencyReport, ParityReport, ParityRow, PrecisionShares, spell_number

_FEW = 3  # outputs of a kind are shown one by one below that


def print_manifest(folder: Path, manifest: Manifest, shares: Mapping[str, PrecisionShares]) -> None:
    """What an export made: one row a graph and typed graph.

    Args:
        shares: a typed graph's file -> what it computes in.
    """
    rows = []
    for graph in manifest.graphs:
        rows.append(
            (graph.name, "portable", graph.precision, "", Path(graph.file).name, _size_of(manifest, graph.file), "", "")
        )
        rows += [
            (
                graph.name,
                typed.target,
                typed.precision,
                str(typed.opset),
                Path(typed.file).name,
                _size_of(manifest, typed.file),
                f"{len(typed.keep_fp32)}" if typed.keep_fp32 else "",
                spell_shares(shares[typed.file].compute),
            )
            for typed in graph.typed
        ]
    print_table(
        f"{manifest.name}: {spell_number(len(manifest.graphs), 'graph')}, verified",
        ("graph", "target", "precision", "opset>", "file", "graph size>", "nodes kept fp32>", "computes in"),
        rows,
    )
    for graph in manifest.graphs:
        for typed in graph.typed:
            if typed.precision == "int8" and not shares[typed.file].compute.get("int8"):
                print_line(f"note: {graph.name} for {typed.target} has no product in int8; it was asked for")
        if graph.reduced_golden:
            print_line(f"note: {graph.name} was compared {graph.reduced_golden}")
        if graph.no_noise_floor:
            print_line(f"note: {graph.name} has no noise floor, so fixed limits hold: {graph.no_noise_floor}")
    total_bytes = sum(entry.bytes for entry in manifest.files.values())
    print_line(f"wrote {folder} ({len(manifest.files)} files, {format_bytes(total_bytes)})")
    if manifest.dims:
        ranges = ", ".join(
            f"{name} {low}..{high} (tuned for {opt})" for name, (low, opt, high) in manifest.dims.items()
        )
        print_line(f"takes {ranges}; other ranges: export with --dim NAME=MIN:OPT:MAX")
    print_line(f"next: metagen-deploy check {shlex.quote(str(folder))}")


def _size_of(manifest: Manifest, file: str) -> str:
    entry = manifest.files.get(file)
    return format_bytes(entry.bytes) if entry else ""


def print_build(report: BuildReport) -> None:
    """One row an engine, the compiler's notes, and what this machine could not build."""
    print_table(
        "Engines",
        ("graph", "target", "backend", "precision", "computes in", "size>", "built in>", "file"),
        [
            (
                row.graph,
                row.target,
                f"{row.backend} {row.backend_version}".strip(),
                row.precision,
                spell_shares(row.shares.compute) if row.shares else "-",
                format_bytes(row.bytes),
                "reused" if row.reused else f"{row.seconds:.1f} s",
                row.file,
            )
            for row in report.rows
        ],
    )
    seen = dict.fromkeys((row.backend, note) for row in report.rows for note in row.notes)
    for backend, note in seen:
        print_line(f"note ({backend}): {note}")
    if report.not_built:
        print_table("Not built here", ("graph", "why"), list(report.not_built.items()))
    print_line(report.summarise())


def spell_shares(shares: Mapping[str, float]) -> str:
    """`84.9 % int8, 15.1 % fp16`, the largest first."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{format_share(share)} {precision}" for precision, share in ranked) or "-"


def print_parity(report: ParityReport) -> None:
    """Each comparison with its limit, the task metrics, the first divergences, and what could not run.

    Outputs that are one thing by layer (`keys_0`, `keys_1`, ...) are one row, the worst; the JSON report has them all.
    """
    print_table(
        "Against the golden data",
        ("graph", "stage", "backend", "precision", "output", "max abs>", "relative>", "limit>", "cosine>", "verdict"),
        [
            (
                row.graph,
                row.stage,
                row.backend,
                row.precision,
                name if row.samples == 1 else f"{name}, {row.samples} samples",
                f"{row.difference.max_abs:.2e}",
                f"{row.needed_relative:.2e}",
                f"{row.limit_relative:.2e}",
                f"{row.difference.cosine:.6f}",
                mark(row.passed),
            )
            for name, row in fold_layers(report.rows)
        ],
    )
    for row in report.rows:
        if not row.passed:
            print_line(f"{row.stage}, {row.difference.name}: {row.reason}", style="red")
    for stage, divergence in report.divergences.items():
        module = f" in {divergence.module_path}" if divergence.module_path else ""
        print_line(
            f"{stage}: first leaves its reference at {divergence.tensor} ({divergence.op_type}{module}), "
            f"max abs {divergence.difference.max_abs:.2e}, cosine {divergence.difference.cosine:.6f}"
        )
    for graph, why in report.reduced_golden.items():
        print_line(f"note: {graph} was compared {why}")
    for graph, why in report.no_noise_floor.items():
        print_line(f"note: {graph} has no noise floor, so fixed limits hold: {why}")
    if report.metrics:
        _print_metrics(report)
    if report.not_run:
        print_table("Not run here", ("stage", "why"), list(report.not_run.items()))
    print_line(mark(report.passed, report.summarise()))


def fold_layers(rows: Sequence[ParityRow]) -> list[tuple[str, ParityRow]]:
    """What to call each row, and the row: of `name_0` .. `name_31` of one stage, only the worst.

    Those that failed stay, each by itself.
    """
    groups: dict[tuple[str, ...], list[ParityRow]] = {}
    for row in rows:
        stem, _, number = row.difference.name.rpartition("_")
        same = stem if row.passed and number.isdigit() else row.difference.name
        groups.setdefault((row.graph, row.stage, row.backend, row.precision, same), []).append(row)
    folded = []
    for group in groups.values():
        if len(group) < _FEW:
            folded += [(row.difference.name, row) for row in group]
        else:
            worst = max(group, key=lambda row: row.needed_relative / row.limit_relative)
            folded.append((f"{worst.difference.name}, the worst of {len(group)}", worst))
    return folded


def _print_metrics(report: ParityReport) -> None:
    print_table(
        "Task metrics, on held-out data",
        ("graph", "stage", "backend", "precision", "metric", "value>", "fp32>", "allowed loss>", "samples>", "verdict"),
        [
            (
                row.graph,
                row.stage,
                row.backend,
                row.precision,
                row.metric,
                format_share(row.value),
                format_share(row.reference),
                f"{100 * row.max_loss:.1f} pt",
                str(row.samples),
                mark(row.passed),
            )
            for row in report.metrics
        ],
    )


def print_latency(reports: Sequence[LatencyReport]) -> None:
    """A table a graph: each contender beside the bundle (first row), timed in turn in one process."""
    for report in reports:
        _print_contenders(report)
    versions = dict(item for report in reports for item in report.versions.items())
    print_line(", ".join(f"{tool} {version}" for tool, version in versions.items()))


def _print_contenders(report: LatencyReport) -> None:
    ours = report.rows[0].median_ms
    print_table(
        f"{report.bundle}: latency at batch {report.batch} on {report.machine}",
        ("contender", "median>", "p10>", "p90>", "time / ours>", "runs>"),
        [
            (
                row.name,
                f"{row.median_ms:.3f} ms",
                f"{row.p10_ms:.3f} ms",
                f"{row.p90_ms:.3f} ms",
                f"{row.median_ms / ours:.2f}x",
                str(row.runs),
            )
            for row in report.rows
        ],
    )


def print_shares(title: str, shares: PrecisionShares) -> None:
    """How much of a graph or engine is in each precision."""
    precisions = list(dict.fromkeys((*shares.nodes, *shares.weight_bytes, *shares.compute)))
    columns: tuple[tuple[str, Mapping[str, float]], ...] = (
        ("nodes>", shares.nodes),
        ("weight bytes>", shares.weight_bytes),
        ("compute>", shares.compute),
    )
    print_table(
        title,
        ("precision", *(name for name, _ in columns)),
        [
            (Text(precision), *(format_share(share[precision]) if precision in share else "" for _, share in columns))
            for precision in precisions
        ],
    )
