"""Where top-1 is counted from on a machine without ONNX Runtime, as a Jetson is: what the export's check recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.checking import parity, stages
from engines.checking.parity import REPORT_NAME, check_bundle, write_report
from specs.bundle.files import read_manifest
from specs.report import MetricRow, ParityReport, ParityRow
from tests.engines.bundles import write_bundle

METRIC = MetricRow(
    graph="block", stage="block/model.onnx", backend="onnxruntime", precision="fp32", metric="top1",
    value=0.75, reference=0.75, samples=4, max_loss=0.0, passed=True,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b", {})
    return tmp_path / "b"


def test_the_recorded_value_is_read(folder: Path) -> None:
    engine = replace(METRIC, stage="block/model.plan", backend="tensorrt", precision="fp16", value=0.5)
    for metrics in ((METRIC,), (engine,)):  # a check without ONNX Runtime hands the reference on
        assert write_report(folder, ParityReport(bundle="b", rows=(), metrics=metrics))
        assert parity._read_references(folder, read_manifest(folder)) == {"block": 0.75}


def test_nothing_recorded(folder: Path) -> None:
    assert parity._read_references(folder, read_manifest(folder)) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"passed": true}', '{"passed": true, "rows": 3, "divergences": {}}'])
def test_a_report_of_another_version_is_no_reference(text: str, folder: Path) -> None:
    write_report(folder, ParityReport(bundle="b", rows=(), metrics=(METRIC,)))
    manifest = read_manifest(folder)
    (folder / REPORT_NAME).write_text(text, encoding="utf-8")
    assert parity._read_references(folder, manifest) == {}


def test_without_onnxruntime_a_runner_that_breaks_is_still_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of what may be raised must not need the package that is missing."""
    from polygraphy.exception import PolygraphyException

    def refuse(*_: object) -> None:
        raise PolygraphyException("the engine is of another version")

    monkeypatch.setattr(stages, "find_version", lambda: "")
    monkeypatch.setattr(stages, "list_exceptions", lambda: pytest.fail("imports onnxruntime"))
    monkeypatch.setattr(parity, "run_feeds", refuse)
    rows: tuple[ParityRow, ...] = check_bundle(folder).rows
    assert rows and {row.reason for row in rows} == {"does not run: the engine is of another version"}
