"""`make demo`, as a new user runs it: the trained model from YAML to engines and answers, with the real compiler."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="the demo compiles engines with TensorRT-RTX")


def test_demo_ends_in_a_table_and_a_picture(repository: Path, environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, repository / "examples" / "demo.py", tmp_path / "demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("image_vit_digits on 360 held-out digits")[2]
    top1 = {
        precision: float(value)
        for precision, value in re.findall(r"^ (fp32|fp16|int8) +([\d.]+) %", table, re.MULTILINE)
    }
    assert set(top1) == {"fp32", "fp16", "int8"}
    assert top1["fp32"] > 97
    assert top1["fp32"] - min(top1.values()) <= 0.5
    assert (tmp_path / "demo" / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "demo").rglob("*.tensorrt-rtx.plan"))) == 3
