"""The judgement of benchmarks/greedy_tokens.py, which runs on GPU hosts alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FLOORS = np.full(48, 1e-6)  # fp16 may then be off by 2^14 as much: 1.6e-2 of rms


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "greedy_tokens.py"
    spec = importlib.util.spec_from_file_location("greedy_tokens", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_logits(script: ModuleType) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((script.STEPS, 64)).astype(np.float32)


def test_another_token_within_the_limits_is_shown_and_passes(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = make_logits(script)
    best = wanted[5].argmax()
    second = np.argsort(wanted[5])[-2]
    wanted[5, second] = wanted[5, best] - 1e-3
    found = wanted.copy()
    found[5, second] += 2e-3
    assert script._compare(found, wanted, FLOORS, "fp16")
    out = capsys.readouterr().out
    assert f"{script.STEPS - 1} of {script.STEPS} tokens equal" in out
    assert "step 5: torch's best two are 1" in out


@pytest.mark.parametrize("step", [0, 47])
def test_logits_beyond_the_limits_fail_though_every_token_is_equal(
    script: ModuleType, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = make_logits(script)
    found = wanted.copy()
    found[step, wanted[step].argmin()] -= 0.1
    assert not script._compare(found, wanted, FLOORS, "fp16")
    out = capsys.readouterr().out
    assert f"{script.STEPS} of {script.STEPS} tokens equal" in out
    assert f"step {step} FAILED: largest error" in out


def test_nan_fails(script: ModuleType) -> None:
    wanted = make_logits(script)
    found = wanted.copy()
    found[3, 0] = np.nan
    assert not script._compare(found, wanted, FLOORS, "fp16")
