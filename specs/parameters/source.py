"""What hands over a model's parameters, and what is known of each before anything is loaded.

A parameter is called `<component>.<parameter>`, e.g. `classifier.layers.0.attention.qkv.weight`, and keeps the type
that it is stored in: float32, float16 or bfloat16. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

#: The types that parameters are stored in, by torch's and by safetensors' name.
PARAMETER_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """What is known of a parameter before anything is loaded.

    Args:
        mapped: `read` hands it over as a view of a mapped file; else it is derived, and `fill` writes it.
        origin: where it comes from, for messages: "tensor 'model.norm.weight' of /x/model.safetensors".
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | str  # a name stands for a type that torch or this project does not take: it is refused
    mapped: bool
    origin: str


class ParameterSource(Protocol):
    """Hands over a model's parameters by name, one at a time.

    `fill_parameters` asks for `list_tensors` once, checks names, shapes and types of all, and only then calls `read`
    or `fill` once for each. NaN and infinity are looked for there too: a source need not.
    """

    @property
    def where(self) -> str:
        """The file or folder, for messages."""

    def list_tensors(self) -> Mapping[str, StoredTensor]:
        """Every parameter that this source has, by the model's name; cheap: headers only."""

    def read(self, name: str) -> Tensor:
        """A mapped tensor: contiguous, of the listed shape and type, alive as long as the tensor is.

        Its pages are dropped between uses, so it must lie in a file mapping that is never written to
        (`safe_open(...).get_tensor(...)` is one).
        """

    def fill(self, name: str, out: Tensor) -> None:
        """Write a derived tensor (concatenated, generated) into `out`, of the listed shape and type, piece by piece."""
