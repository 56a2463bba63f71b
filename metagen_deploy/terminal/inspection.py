"""`inspect`: what a bundle, an engine or an ONNX file holds, as tables. `engines.onnx_files` reads ONNX files."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from engines.backends import load_backend
from engines.onnx_files.inspect import Inspection, inspect_model
from engines.onnx_files.records import Value
from engines.plugins import locate_files
from metagen_deploy.sources import is_model
from metagen_deploy.terminal.render import print_shares, spell_shares
from metagen_deploy.terminal.tables import format_bytes, format_count, print_line, print_table
from specs.bundle import MANIFEST_NAME, EngineFile, Graph, Manifest
from specs.bundle.files import read_manifest, resolve_inside, verify_files
from specs.errors import InputError, MetagenError

_ENGINE_BACKENDS = ("tensorrt-rtx", "tensorrt")  # as they end an engine's name: model.h200-fp16.tensorrt.plan
_ENGINE_SUFFIXES = (".plan", ".engine", ".trt")
_MOST_OPERATORS = 24


def print_inspection(path: Path) -> None:
    """Tell a bundle by its folder, an ONNX file by its ending, and take anything else for an engine.

    Raises:
        InputError: nothing is there.
        MetagenError: it cannot be read; see `engines.onnx_files.inspect` and the backends.
    """
    if path.is_dir():
        manifest = read_manifest(path)
        verify_files(path, manifest)
        _print_bundle(path, manifest)
    elif not path.is_file():
        raise InputError(
            "there is no such file or folder",
            where=str(path),
            allowed="a bundle, an engine or an .onnx file",
            fix="check the path",
        )
    elif is_model(path):
        _print_model(inspect_model(path))
    elif path.suffix in _ENGINE_SUFFIXES:
        _print_engine(path)
    else:
        raise InputError(
            "this is nothing that can be inspected",
            where=str(path),
            allowed=f"a bundle's folder, an .onnx file, or an engine ({', '.join(_ENGINE_SUFFIXES)})",
            fix=f"metagen-deploy inspect {shlex.quote(str(path.parent))}"
            if path.name == MANIFEST_NAME
            else "check the path",
        )


def _print_bundle(folder: Path, manifest: Manifest) -> None:
    total_bytes = sum(entry.bytes for entry in manifest.files.values())
    print_line(
        f"{manifest.name}: {manifest.pipeline['kind']}, {len(manifest.files)} files, {format_bytes(total_bytes)}"
    )
    print_line("made by " + ", ".join(f"{tool} {version}" for tool, version in manifest.created_by.items()))
    if manifest.dims:
        print_line(
            "dims: " + "; ".join(f"{d} {low}..{high}, tuned for {opt}" for d, (low, opt, high) in manifest.dims.items())
        )
    sizes = {name: opt for name, (_, opt, _) in manifest.dims.items()}
    print_table(
        "Graphs (nodes: as the file has them; inlined: with the bodies of custom ops in their place)",
        ("graph", "target", "precision", "opset>", "nodes>", "inlined>", "MACs>", "weights>", "compute", "file"),
        [row for graph in manifest.graphs for row in _describe_graph(folder, graph, sizes)],
    )
    kept = {
        (graph.name, f"{typed.target}-{typed.precision}"): Counter(item.partition(": ")[2] for item in typed.keep_fp32)
        for graph in manifest.graphs
        for typed in graph.typed
        if typed.keep_fp32
    }
    if kept:
        rows = [(*key, reason, str(count)) for key, reasons in kept.items() for reason, count in reasons.most_common()]
        print_table("Nodes kept in fp32", ("graph", "variant", "reason", "nodes>"), rows)
    engines = [
        (
            graph.name,
            e.target,
            e.precision,
            f"{e.backend} {e.backend_version}",
            e.compute_capability or "-",
            e.gpu,
            e.file,
        )
        for graph in manifest.graphs
        for e in graph.engines
    ]
    if engines:
        columns = ("graph", "target", "precision", "backend", "SM", "built on", "file")
        print_table("Engines", columns, [(*row[:5], row[5] or "ahead of time", row[6]) for row in engines])


def _describe_graph(folder: Path, graph: Graph, sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    stages = [("portable", graph.precision, graph.file), *((t.target, t.precision, t.file) for t in graph.typed)]
    rows: list[tuple[str, ...]] = []
    for target, precision, file in stages:
        found = inspect_model(resolve_inside(folder, file), sizes)
        rows.append(
            (
                graph.name,
                target,
                precision,
                str(found.opsets.get("", "-")),
                str(sum(found.operators.values())),
                str(found.inlined_nodes),
                format_count(found.macs),
                format_bytes(found.weight_bytes),
                spell_shares(found.shares.compute),
                file,
            )
        )
    return rows


def _print_model(found: Inspection) -> None:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items())
    print_line(f"{found.path.name}: {found.producer or 'unknown producer'}, IR {found.ir_version}, opset {opsets}")
    print_line(
        f"weights {format_bytes(found.weight_bytes)}, {format_count(found.macs)} MACs (dynamic dims counted as 1)"
    )
    if found.external_files:
        print_line(f"weights lie in {', '.join(found.external_files)}")
    ends = (("input", found.inputs), ("output", found.outputs))
    rows = [(way, value.name, value.dtype or "?", _spell_shape(value)) for way, values in ends for value in values]
    print_table("Interface", ("", "name", "dtype", "shape"), rows)
    shown = list(found.operators.items())[:_MOST_OPERATORS]
    rest = sum(found.operators.values()) - sum(count for _, count in shown)
    print_table(
        "Operators",
        ("operator", "nodes>", "note"),
        [
            *((name, str(count), _note_operator(name, found.custom_ops)) for name, count in shown),
            *([("other", str(rest), f"{len(found.operators) - len(shown)} kinds")] if rest else []),
        ],
    )
    print_shares("Precision", found.shares)


def _note_operator(name: str, custom_ops: Mapping[str, bool]) -> str:
    if name not in custom_ops:
        return ""
    return "has a body in standard ops" if custom_ops[name] else "no body: needs a runtime that knows it"


def _spell_shape(value: Value) -> str:
    return "?" if value.shape is None else f"[{', '.join('?' if size is None else str(size) for size in value.shape)}]"


def _print_engine(path: Path) -> None:
    """What the bundle around an engine recorded of it, and what the engine says itself where it can be opened."""
    named = [backend for backend in _ENGINE_BACKENDS if path.name.endswith(f".{backend}.plan")]
    backend = load_backend(named[0] if named else _ENGINE_BACKENDS[-1])
    found = _find_record(path)
    print_line(f"{path.name}: {format_bytes(path.stat().st_size)}, {backend.name}")
    if found:
        record = found[2]
        print_table(
            "Recorded when it was built",
            ("", ""),
            [(f.name, _spell_field(getattr(record, f.name))) for f in fields(record)],
        )
    try:
        said = backend.inspect(path, _find_plugins(*found) if found else ())
    except MetagenError as error:
        if not found:
            raise
        print_line(f"not opened here: {error.problem}")
        return
    print_table("What the engine says", ("", ""), [(key, str(value)) for key, value in said.items()])


def _spell_field(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value or "-")


def _find_plugins(folder: Path, manifest: Manifest, engine: EngineFile) -> list[Path]:
    """The libraries of an engine's plugins. Raises PreflightError, BundleError: they are missing or changed."""
    files = locate_files(manifest, engine)
    verify_files(folder, manifest, files)
    return [folder / file for file in files]


def _find_record(path: Path) -> tuple[Path, Manifest, EngineFile] | None:
    """The bundle that an engine lies in, and the manifest's entry for it; None where the bundle does not know it."""
    path = path.resolve()
    for folder in path.parents:
        if (folder / MANIFEST_NAME).is_file():
            manifest = read_manifest(folder)
            engine = next((e for g in manifest.graphs for e in g.engines if folder / e.file == path), None)
            if engine is not None:
                verify_files(folder, manifest, [engine.file])
                return folder, manifest, engine
            return None
    return None
