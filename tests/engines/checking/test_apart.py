"""A check in a process of its own says what a check here says, and leaves no process behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.checking.apart import BundleChecker
from engines.checking.parity import check_bundle
from specs.errors import BundleError, ParityError
from specs.progress import ignore_progress
from tests.engines.bundles import make_model, make_weights, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apart") / "b"
    write_bundle(folder, {("cpu", "fp32"): make_model(make_weights(), precision="fp32")})
    return folder


def test_it_reports_what_a_check_here_reports(bundle: Path) -> None:
    said: list[str] = []
    with BundleChecker() as checker:
        checker.start()
        report = checker.check(bundle, progress=lambda text, fraction: said.append(text))
    here = check_bundle(bundle)
    assert replace(report, versions={}) == replace(here, versions={}) and report.passed and report.rows
    assert said[0] == "reading every file" and said[-1] == "compared"


def test_it_need_not_be_started_before(bundle: Path) -> None:
    with BundleChecker() as checker:
        assert checker.check(bundle, progress=ignore_progress).passed


def test_its_errors_are_raised_here(tmp_path: Path) -> None:
    with BundleChecker() as checker, pytest.raises(BundleError, match="is not a bundle"):
        checker.check(tmp_path, progress=ignore_progress)


def test_one_that_died_while_it_waited_is_said(bundle: Path) -> None:
    with BundleChecker() as checker:
        checker.start()
        assert checker._worker is not None
        checker._worker.kill()
        checker._worker.wait()
        with pytest.raises(ParityError, match="the process that checks the bundle died") as caught:
            checker.check(bundle, progress=ignore_progress)
    assert "exit status -9" in str(caught.value)


def test_without_a_check_it_ends_with_its_caller() -> None:
    with pytest.raises(KeyError), BundleChecker() as checker:
        checker.start()
        worker = checker._worker
        raise KeyError
    assert worker is not None and worker.poll() is not None
