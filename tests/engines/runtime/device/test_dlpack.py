"""DLPack for real: capsules of torch and numpy read, and ours taken by torch."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from engines.runtime.device import dlpack
from engines.runtime.device.dlpack import make_capsule, read_capsule


def test_capsules_of_torch_and_numpy_are_read() -> None:
    tensor = torch.arange(24, dtype=torch.float16).reshape(2, 3, 4)[:, 1:]
    layout = read_capsule(torch.utils.dlpack.to_dlpack(tensor))
    assert layout == (tensor.data_ptr(), (dlpack.CPU, 0), np.dtype(np.float16), (2, 2, 4), (12, 4, 1))
    array = np.zeros((5, 0, 2), np.int64)
    layout = read_capsule(array.__dlpack__())
    assert (layout.dtype, layout.shape) == (np.dtype(np.int64), (5, 0, 2))
    assert read_capsule(torch.utils.dlpack.to_dlpack(torch.zeros(2, dtype=torch.bfloat16))).dtype is None
    with pytest.raises(ValueError, match="PyCapsule"):
        read_capsule(object())


def test_a_capsule_lets_its_owner_go_once_whoever_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        alive = 0

        def __init__(self) -> None:
            Owner.alive += 1

        def __del__(self) -> None:
            Owner.alive -= 1

    value = np.arange(6, dtype=np.float32).reshape(2, 3)

    def make() -> object:
        return make_capsule(value.ctypes.data, (2, 3), value.dtype, Owner())

    capsule = make()
    assert Owner.alive == 1 and read_capsule(capsule).strides == (3, 1)
    del capsule  # nobody took it
    assert Owner.alive == 0
    monkeypatch.setattr(dlpack, "CUDA", dlpack.CPU)
    tensor = torch.from_dlpack(make())
    assert tensor.data_ptr() == value.ctypes.data and torch.equal(tensor, torch.from_numpy(value))
    part = tensor[1]
    del tensor
    gc.collect()
    assert Owner.alive == 1
    del part
    gc.collect()
    assert Owner.alive == 0 and not dlpack._lent
