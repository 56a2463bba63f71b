"""What a terminal shows of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from metagen_deploy.terminal import tables
from metagen_deploy.terminal.render import fold_layers, print_manifest
from specs.bundle import Graph, Manifest, TypedGraph
from specs.report import BuildReport, BuildRow, ParityReport, ParityRow, PrecisionShares, TensorDifference


def make_row(name: str, error: float, *, stage: str = "model.onnx", passed: bool = True) -> ParityRow:
    difference = TensorDifference(
        name=name, max_abs=error, mean_abs=error / 2, cosine=1.0, reference_rms=1.0, non_finite=0
    )
    return ParityRow(
        graph="decoder.decode",
        stage=stage,
        backend="onnxruntime",
        precision="fp32",
        difference=difference,
        limit_relative=1e-3,
        limit_cosine=0.999,
        needed_relative=error,
        passed=passed,
    )


def test_a_cache_is_two_rows_a_stage() -> None:
    rows = [make_row("logits", 1e-6)]
    rows += [make_row(f"{kind}_{layer}", layer * 1e-6) for layer in range(32) for kind in ("keys", "values")]
    rows += [make_row(f"keys_{layer}", 1e-6 - layer * 1e-8, stage="cpu-int8.onnx") for layer in range(32)]
    names = [name for name, _ in fold_layers(rows)]
    assert names == [
        "logits",
        "keys_31, the worst of 32",
        "values_31, the worst of 32",
        "keys_0, the worst of 32",
    ]


def test_what_failed_is_shown_by_itself() -> None:
    rows = [make_row(f"keys_{layer}", 2e-3 if layer == 5 else 1e-6, passed=layer != 5) for layer in range(8)]
    assert [name for name, _ in fold_layers(rows)] == ["keys_0, the worst of 7", "keys_5"]


def test_two_layers_are_shown_as_they_are() -> None:
    rows = [make_row(f"keys_{layer}", 1e-6) for layer in range(2)]
    assert [name for name, _ in fold_layers(rows)] == ["keys_0", "keys_1"]


@pytest.mark.parametrize(("compute", "noted"), [({"int8": 0.4, "fp32": 0.6}, False), ({"fp32": 1.0}, True)])
def test_int8_that_nothing_computes_in_is_noted(
    compute: dict[str, float], noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = TypedGraph(file="g/m.cpu-int8.onnx", target="cpu", lowering="onnxruntime", precision="int8", opset=18)
    fp32 = replace(typed, file="g/m.cpu-fp32.onnx", precision="fp32")
    graph = Graph(
        name="g", component="g", file="g/m.onnx", golden="g/m.npz", inputs=(), outputs=(), typed=(typed, fp32)
    )
    manifest = Manifest(name="m", spec_digest="", created_by={}, dims={}, pipeline={"kind": "x"}, graphs=(graph,))
    shares = {
        typed.file: PrecisionShares(nodes={}, weight_bytes={}, compute=compute),
        fp32.file: PrecisionShares(nodes={}, weight_bytes={}, compute={"fp32": 1.0}),
    }
    print_manifest(Path("m.bundle"), manifest, shares)
    assert ("note: g for cpu has no product in int8" in capsys.readouterr().out) == noted


def test_one_is_not_several() -> None:
    row = BuildRow(
        graph="g", target="cpu", backend="b", backend_version="1", precision="fp32", file="f", bytes=9, seconds=0.0,
        reused=False,
    )  # fmt: skip
    assert BuildReport(bundle="m", rows=(row,)).summarise().startswith("m: 1 engine, ")
    assert BuildReport(bundle="m", rows=(row, row)).summarise().startswith("m: 2 engines, ")
    report = ParityReport(bundle="m", rows=(make_row("logits", 1e-6),))
    assert report.summarise() == "m: 1 comparison, within tolerance"


def test_a_row_in_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table("", ("sound", "transcript"), [("a.wav", "word " * 400), ("b.wav", "word")])
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["sound", "transcript"]
    assert set(rule.strip()) == {"─"}
    assert [row.split()[0] for row in rows if row] == ["a.wav", "b.wav"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_word_is_broken_on_a_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "_open_console", lambda: Console(width=width, highlight=False))
    columns = ("name", "parameters>", "parts", "verdict")
    rows = [
        ("image_diffusion_sdxl", "5.73 G", "2 text.clip, diffusion.unet, diffusion.scheduler", tables.mark(True)),
        ("", "451 k", "", tables.mark(False, "needs 3 GB more")),
    ]
    tables.print_table("", columns, rows)
    said = capsys.readouterr().out
    for word in " ".join(str(cell) for row in rows for cell in row).split():
        assert word in said.split(), said
    assert max(map(len, said.splitlines())) <= width
    assert ("name" in said) == (width >= 80), "narrower than its words, a table is a list"
