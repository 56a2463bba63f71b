"""Tensors of torch on the GPU are read without DLPack where nothing is lost by it; over the stand-in."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.runtime.device import dlpack
from engines.runtime.graph_session import GraphSession
from specs.errors import InputError
from tests.engines.runtime.stand_in_calls import OnDevice, expect, make_feed, narrow
from tests.engines.runtime.tensorrt_stand_in import Device

pytestmark = pytest.mark.usefixtures("tensorrt_stand_in")


class Tensor:
    """As torch's, which this machine has for the CPU alone."""

    def __init__(self, array: OnDevice, **changes: Any) -> None:
        self.array, self.shape = array, array.shape
        self.dtype, self.device = f"torch.{array.dtype}", SimpleNamespace(index=0)
        self.is_cuda, self.requires_grad, self.contiguous, self.conjugate, self.negated = (
            True,
            False,
            True,
            False,
            False,
        )
        self.__dict__.update(changes)

    def is_contiguous(self) -> bool:
        return self.contiguous

    def is_conj(self) -> bool:
        return self.conjugate

    def is_neg(self) -> bool:
        return self.negated

    def data_ptr(self) -> int:
        return self.array.address

    def __dlpack_device__(self) -> tuple[int, int]:
        return (dlpack.CUDA, 0)

    def __dlpack__(self, *, stream: int | None = None) -> object:
        raise BufferError("by DLPack")


@pytest.fixture
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    current = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=Tensor, cuda=current))


@pytest.mark.usefixtures("_torch")
def test_a_tensor_of_torch_is_read_without_dlpack_and_its_stream_waited_for(session: GraphSession) -> None:
    feed = make_feed(2)
    given = {"a": Tensor(narrow(feed)["a"]), "n": feed["n"]}
    assert np.array_equal(session.run(given)["y"].to_numpy(), expect(feed))
    assert Device.ordered == [(100, 77)]


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    "changes",
    [
        {"requires_grad": True}, {"contiguous": False}, {"conjugate": True}, {"negated": True}, {"is_cuda": False},
        {"device": SimpleNamespace(index=1)}, {"dtype": "torch.bfloat16"},
    ],
)  # fmt: skip
def test_of_any_other_tensor_dlpack_decides(session: GraphSession, changes: dict[str, Any]) -> None:
    feed = make_feed(2)
    with pytest.raises(InputError, match="by DLPack"):
        session.run({"a": Tensor(narrow(feed)["a"], **changes), "n": feed["n"]})
