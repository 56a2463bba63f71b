"""What makes an export fast changes nothing of the process that it runs in."""

from __future__ import annotations

import gc

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from exporters import lower
from exporters.garbage import collect_rarely


def test_the_collector_is_as_it_was() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), collect_rarely():
        assert gc.get_threshold()[0] > before[0]
        raise KeyError
    assert gc.get_threshold() == before


def test_a_collector_that_is_switched_off_stays_so() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(0)
        with collect_rarely():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)


def test_translations_are_read_once_and_are_torchs_own() -> None:
    own = ONNXRegistry.__dict__["from_torchlib"]
    with lower._keep_translations():
        first, second = ONNXRegistry().from_torchlib(opset_version=18), ONNXRegistry().from_torchlib(opset_version=18)
        some = next(iter(first.functions))
        assert first.functions[some][0] is second.functions[some][0], "read once"
        first.functions[some].insert(0, first.functions[some][0])
        assert len(second.functions[some]) == len(first.functions[some]) - 1, "a custom translation stays in its export"
        usual = ONNXRegistry.from_torchlib()  # as torch asks while it reports what went wrong
        assert usual.functions.keys() == second.functions.keys()
    assert ONNXRegistry.__dict__["from_torchlib"] is own
    read = ONNXRegistry.from_torchlib(opset_version=18)
    assert {name: len(found) for name, found in read.functions.items()} == {
        name: len(found) for name, found in second.functions.items()
    }
