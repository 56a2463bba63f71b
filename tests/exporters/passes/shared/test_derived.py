"""Looking through a model's weights leaves none of their pages in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes.shared import derived
from exporters.passes.shared.derived import list_pieces, transpose_lazily

SHAPE = (2048, 2048)  # 16 MB: of the size that models have most of


@pytest.fixture
def weight(tmp_path: Path) -> ir.ExternalTensor:
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (tmp_path / "weights.data").write_bytes(values.tobytes())
    return ir.ExternalTensor(
        "weights.data", 0, values.nbytes, ir.DataType.FLOAT, shape=ir.Shape(SHAPE), name="w", base_dir=tmp_path
    )


def read_resident_bytes(path: Path) -> int:
    """Of this process's mappings of a file."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ")[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) << 10
    return resident


def test_pages_are_given_back(weight: ir.ExternalTensor) -> None:
    total = sum(float(piece.sum(dtype=np.float64)) for piece in list_pieces(transpose_lazily(weight, (1, 0))))
    assert read_resident_bytes(Path(weight.path)) < 1 << 20
    assert total == pytest.approx(float(weight.numpy().sum(dtype=np.float64)), abs=1e-6)


def test_the_measure_sees_pages_that_stay(weight: ir.ExternalTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "_GIVEN_BACK_BYTES", 64 << 20)
    assert sum(float(np.abs(piece).max()) for piece in list_pieces(weight)) > 0
    assert read_resident_bytes(Path(weight.path)) >= weight.nbytes
