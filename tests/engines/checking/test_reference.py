"""Reference data that somebody else wrote: its digests are right, and it does not fit the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.checking.parity import check_bundle
from engines.checking.reference import read_evaluation
from specs.bundle.files import index_files, read_manifest, write_manifest
from specs.errors import BundleError
from tests.engines.bundles import make_model, make_weights, write_bundle

Arrays = dict[str, np.ndarray[Any, Any]]
STRUCT = np.dtype([("a", "f4")])

EVALUATIONS: dict[str, Callable[[Arrays], Arrays]] = {
    "one label": lambda a: a | {"labels": np.int64(3)},
    "labels of another length": lambda a: a | {"labels": a["labels"][:-1]},
    "labels in rows": lambda a: a | {"labels": a["labels"][:, None]},
    "labels of floats": lambda a: a | {"labels": a["labels"].astype(np.float32)},
    "nothing": lambda a: {name: value[:0] for name, value in a.items()},
    "records": lambda a: a | {"input:tokens": np.zeros(a["input:tokens"].shape, STRUCT)},
    "another type": lambda a: a | {"input:tokens": a["input:tokens"].astype(np.float64)},
    "another width": lambda a: a | {"input:tokens": a["input:tokens"][..., 1:]},
    "another rank": lambda a: a | {"input:tokens": a["input:tokens"][..., None]},
    "no input": lambda a: {"labels": a["labels"]},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b", {("cpu", "fp32"): make_model(make_weights())}, labels=True)
    return tmp_path / "b"


def rewrite(bundle: Path, file: str, change: Callable[[Arrays], Arrays]) -> None:
    """The arrays of a file changed, and the manifest written again as if it were right."""
    arrays = change(dict(np.load(bundle / file)))
    np.savez(bundle / file, **arrays)
    write_manifest(bundle, replace(read_manifest(bundle), files=index_files(bundle)))


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluation_data_that_does_not_fit(case: str, bundle: Path) -> None:
    (graph,) = read_manifest(bundle).graphs
    assert graph.evaluation and read_evaluation(bundle, graph)
    rewrite(bundle, graph.evaluation, EVALUATIONS[case])
    with pytest.raises(BundleError, match="the evaluation data of graph 'block' does not fit it"):
        check_bundle(bundle)


def test_golden_data_of_another_kind(bundle: Path) -> None:
    """No crash, and no verdict on numbers that are none."""
    (graph,) = read_manifest(bundle).graphs
    rewrite(bundle, graph.golden, lambda a: a | {"output:logits": np.zeros(a["output:logits"].shape, STRUCT)})
    report = check_bundle(bundle)
    assert not report.passed
    reasons = {row.reason for row in report.rows if row.difference.name == "logits"}
    assert reasons == {"the golden data is of type void32"}


@pytest.mark.parametrize("dtype", [STRUCT, np.dtype("U3"), np.dtype(np.complex64), np.dtype(np.float64)])
def test_golden_inputs_of_another_type(dtype: np.dtype[Any], bundle: Path) -> None:
    (graph,) = read_manifest(bundle).graphs
    rewrite(bundle, graph.golden, lambda a: a | {"input:tokens": np.zeros(a["input:tokens"].shape, dtype)})
    with pytest.raises(BundleError, match="the golden data of graph 'block' has another type than the manifest says"):
        check_bundle(bundle)


def test_a_manifest_that_lacks_an_input(bundle: Path) -> None:
    """The golden data then lacks nothing that the manifest names, and the graph still wants it."""
    manifest = read_manifest(bundle)
    (graph,) = manifest.graphs
    write_manifest(bundle, replace(manifest, graphs=(replace(graph, inputs=(), evaluation=None),)))
    report = check_bundle(bundle)
    assert not report.passed
    assert all("the graph's inputs are not those of the manifest" in row.reason for row in report.rows)
