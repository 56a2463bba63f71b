"""Inputs on their way to the GPU: narrowed and whole, by however many threads."""

from __future__ import annotations

import numpy as np
import pytest

from engines.runtime.device.staging import copy_into


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_large_inputs_are_copied_whole_by_several_threads(count: int) -> None:
    value = np.random.default_rng(0).integers(-99, 99, (count, 5, 1 << 16)).transpose(0, 2, 1)
    view = np.zeros(value.shape, np.int32)
    copy_into(view, value)
    assert np.array_equal(view, value) and view.nbytes > 1 << 20
    copy_into(empty := np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    copy_into(scalar := np.zeros((), np.float32), np.full((), 3, np.float32))
    assert scalar == 3 and not empty.size
    with pytest.raises(TypeError):
        copy_into(view, value + 0.5)
