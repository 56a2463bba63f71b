"""Whatever goes wrong between a file and its graphs must not become a bundle."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import exporters.onnx_models.read
import exporters.passes
from specs.errors import ParityError
from tests.exporters.onnx_models.exporting import export, list_leftovers

pytestmark = pytest.mark.usefixtures("check_in_this_process")


class SkipTanh(ir.passes.InPlacePass):
    """A pass that loses a node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if node.op_type == "Tanh":
                node.op_type = "Identity"
        return ir.passes.PassResult(model, modified=True)


class SwapOutputs(ir.passes.InPlacePass):
    """A pass that returns the outputs in another order."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph.outputs[0], model.graph.outputs[1] = model.graph.outputs[1], model.graph.outputs[0]
        return ir.passes.PassResult(model, modified=True)


class LoseSigns(ir.passes.InPlacePass):
    """A pass that loses the signs of weights."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            value.const_value = ir.tensor(np.abs(value.const_value.numpy()), name=value.name)
        return ir.passes.PassResult(model, modified=True)


@pytest.mark.parametrize(
    ("name", "mutant", "words"),
    [
        ("weights_as_float_data", SkipTanh(), "largest error"),
        ("keywords", SwapOutputs(), "the outputs are kwds, args, the manifest has args, kwds"),
        ("weights_as_float_data", LoseSigns(), "largest error"),
    ],
    ids=["lost node", "swapped outputs", "changed weight"],
)
def test_a_broken_pass_makes_no_bundle(
    name: str,
    mutant: ir.passes.PassBase,
    words: str,
    models: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = ("onnxruntime", "fp32")
    broken = (*exporters.passes.PIPELINES[key], mutant)
    monkeypatch.setitem(exporters.passes.PIPELINES, key, broken)
    with pytest.raises(ParityError, match=re.escape(words)):
        export(models(name), tmp_path / "o.bundle")
    assert not list(list_leftovers(tmp_path))


def test_a_broken_reader_makes_no_bundle(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden data comes from the user's file, not from what was read of it."""

    def densify_wrongly(path: Path, graph: onnx.GraphProto) -> None:
        for sparse in graph.sparse_initializer:
            graph.initializer.append(helper.make_tensor(sparse.values.name, 1, sparse.dims, [0.5] * 16))
        del graph.sparse_initializer[:]

    monkeypatch.setattr("exporters.onnx_models.normalize._densify", densify_wrongly)
    with pytest.raises(ParityError, match=r"output 'y' of model/model\.onnx is outside tolerance"):
        export(models("sparse_weight"), tmp_path / "o.bundle")
    assert not list(list_leftovers(tmp_path))
