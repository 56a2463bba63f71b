"""One .safetensors file whose tensors are exactly the model's, mapped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from specs.errors import WeightsError
from specs.parameters.source import PARAMETER_DTYPES, StoredTensor


@final
class SafetensorsFile:
    """The tensors of one .safetensors file, under the names they have there, mapped.

    Raises:
        WeightsError: missing or damaged file, or another format.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"weights in '{path.suffix}' files are not read: they can hold code",
                where=str(path),
                allowed=".safetensors",
                fix="convert once:"
                " safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')",
            )
        self._path, self.where = path, str(path)
        with _word_errors(path):
            self._file: Any = safe_open(path, framework="pt")

    def list_tensors(self) -> Mapping[str, StoredTensor]:
        with _word_errors(self._path):
            return {name: self._describe(name) for name in self._file.keys()}  # noqa: SIM118  # no mapping

    def read(self, name: str) -> Tensor:
        with _word_errors(self._path):
            value: Tensor = self._file.get_tensor(name)
        return value

    def fill(self, name: str, out: Tensor) -> None:
        raise AssertionError(f"'{name}' is mapped, not derived")

    def _describe(self, name: str) -> StoredTensor:
        header = self._file.get_slice(name)
        kind = header.get_dtype()
        return StoredTensor(
            shape=tuple(header.get_shape()),
            dtype=PARAMETER_DTYPES.get(kind, kind),
            mapped=True,
            origin=f"tensor '{name}' of {self._path}",
        )


@contextlib.contextmanager
def _word_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise WeightsError("the weights file does not exist", where=str(path), fix="correct weights.source") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            "the weights file is truncated, or is not safetensors",
            where=str(path),
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="copy or download it again, or convert it again",
        ) from None
