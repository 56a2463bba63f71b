"""The whole path of a shipped spec: export, every graph against torch, the real TensorRT-RTX compiler."""

from __future__ import annotations

from pathlib import Path

from engines.building.bundle import build_bundle
from engines.checking.parity import check_bundle
from exporters.export import export_spec
from specs.document import parse_document, read_text
from specs.load import load_spec
from specs.progress import ignore_progress
from specs.report import BuildRow
from specs.schema import Precision, Spec
from specs.sources import ZOO, list_zoo
from specs.targets import load_target

RTX = "rtx-4090"


def list_tiny_specs() -> list[str]:
    """Every shipped spec at its smallest: the `tiny` variant; where it has none, itself and its variants."""
    names = []
    for name in list_zoo():
        path = ZOO / f"{name}.yaml"
        variants = parse_document(read_text(path), source=path.name).data.get("variants", {})
        names += [f"{name}:tiny"] if "tiny" in variants else [name, *(f"{name}:{one}" for one in variants)]
    return names


def set_precision(spec: Spec, precision: Precision) -> Spec:
    """`precision` for every component but those that the spec keeps in fp32 itself."""
    kept: dict[str, Precision] = {name: "fp32" for name, own in spec.precision.items() if own == "fp32"}
    return spec.model_copy(update={"precision": {"default": precision, **kept}})


def walk(name: str, precisions: tuple[Precision, ...], folder: Path) -> list[BuildRow]:
    """Export for the CPU and for TensorRT-RTX, compare, compile. Any number out of tolerance fails here.

    All precisions at once; one after the other where the spec keeps a component in fp32, since `precisions` would not.
    """
    spec = load_spec(name)
    if "fp32" not in spec.precision.values():
        return _walk(spec, precisions, folder / "bundle")
    return [row for one in precisions for row in _walk(set_precision(spec, one), (), folder / f"{one}.bundle")]


def _walk(spec: Spec, precisions: tuple[Precision, ...], folder: Path) -> list[BuildRow]:
    folder.mkdir()
    targets = [load_target("cpu"), load_target(RTX)]
    export_spec(spec, folder, targets=targets, precisions=precisions, progress=ignore_progress)
    report = check_bundle(folder, progress=ignore_progress)
    assert report.passed, "\n".join(f"{row.graph} {row.stage}: {row.reason}" for row in report.rows if not row.passed)
    return list(build_bundle(folder, target=RTX, progress=ignore_progress).rows)
