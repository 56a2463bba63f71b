"""`config.json` as typed values: every error names the file and the key.

Nothing of a checkpoint is ever executed: a config that asks for code of its own (`auto_map`) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, final

from specs.errors import CheckpointError

Value = TypeVar("Value")
_MAX_BYTES = 32 << 20
_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}
_NOT_GIVEN: Any = object()
_LARGEST = 1 << 63  # JSON's whole numbers have no end, floats have one
_LARGEST_INT = 1 << 53  # what every reader of JSON has exactly; no size, id or count is larger

#: The way out for a model that no importer knows.
USE_ONNX = (
    "export the model to ONNX with its own library; metagen-deploy export MODEL.onnx -o BUNDLE takes it from there"
)


@final
class Config:
    """One JSON mapping of a checkpoint. A key that is null counts as absent, and where it says yes or no as no.

    So the libraries treat it: their `None` is not what a missing key is filled with where it stands behind an `if`.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def take(self, key: str, kind: type[Value], default: Value = _NOT_GIVEN) -> Value:
        """The value of `key`; a whole number will do for a float.

        Raises:
            CheckpointError: it is missing and there is no default, or it is of another type.
        """
        value = self.data.get(key)
        if value is None and kind is bool and key in self.data:
            value = False
        if value is None:
            if default is _NOT_GIVEN:
                raise CheckpointError(
                    f"'{key}' is missing in the checkpoint's config",
                    where=self.where,
                    allowed=_NAMES.get(kind, kind.__name__),
                    fix="restore the file: it belongs to the checkpoint",
                )
            return default
        if kind is float and type(value) is int and abs(value) < _LARGEST:
            return float(value)  # type: ignore[return-value]
        if kind is int and type(value) is int and abs(value) > _LARGEST_INT:
            raise CheckpointError(
                f"'{key}' in the checkpoint's config is far too large",
                where=self.where,
                got=repr(value)[:80],
                allowed=f"at most {_LARGEST_INT}",
                fix="restore the file: it belongs to the checkpoint",
            )
        if type(value) is not kind:
            raise CheckpointError(
                f"'{key}' in the checkpoint's config is not {_NAMES.get(kind, kind.__name__)}",
                where=self.where,
                got=repr(value)[:80],
                fix="restore the file: it belongs to the checkpoint",
            )
        return value

    def take_positive(self, key: str, kind: type[Value], default: Value = _NOT_GIVEN) -> Value:
        """As `take`, for a number that is divided by or whose root is taken.

        Raises:
            CheckpointError: as `take`, or it is not above 0.
        """
        value = self.take(key, kind, default)
        if not value > 0:  # type: ignore[operator]  # also NaN, which Python's JSON reads
            raise CheckpointError(
                f"'{key}' in the checkpoint's config is not above 0",
                where=self.where,
                got=repr(value),
                fix="restore the file: it belongs to the checkpoint",
            )
        return value

    def take_count(self, key: str, default: int = _NOT_GIVEN, *, least: int = 1, most: int = 1 << 20) -> int:
        """As `take`, for how many of something there are: of what lists are made before the spec is checked.

        Raises:
            CheckpointError: as `take`, or it is below `least` or above `most`.
        """
        value = self.take(key, int, default)
        if not least <= value <= most:
            raise CheckpointError(
                f"'{key}' in the checkpoint's config is out of range",
                where=self.where,
                got=repr(value)[:80],
                allowed=f"{least} to {most}",
                fix="restore the file: it belongs to the checkpoint",
            )
        return value

    def take_first(self, keys: Collection[str], kind: type[Value], default: Value = _NOT_GIVEN) -> Value:
        """The value of the first of `keys` that is there: libraries rename keys from version to version."""
        for key in keys:
            if key in self:
                return self.take(key, kind)
        return self.take(next(iter(keys)), kind, default)

    def take_config(self, key: str) -> Config:
        """A mapping inside this one; an empty one when it is absent."""
        value = self.data.get(key) or {}
        if not isinstance(value, dict):
            raise CheckpointError(
                f"'{key}' in the checkpoint's config is not a mapping",
                where=self.where,
                got=repr(value)[:80],
                fix=f"correct '{key}', or download the checkpoint again",
            )
        return Config(value, f"{self.where}: {key}")

    def take_configs(self, key: str) -> list[Config]:
        """A list of mappings; an empty one when it is absent."""
        values = self.take(key, list, [])
        return [Config({key: value}, self.where).take_config(key) for value in values]

    def require(self, key: str, allowed: Collection[Any], default: Any) -> Any:
        """The value of `key`, which must be one of `allowed`: what this project implements.

        Raises:
            CheckpointError: it is something else; a wrong model is worse than none.
        """
        value = self.data.get(key)
        value = default if value is None else value
        if value not in allowed:
            raise CheckpointError(
                f"'{key}' is {value!r} in the checkpoint's config, which is not implemented",
                where=self.where,
                allowed=", ".join(repr(one) for one in allowed),
                fix=USE_ONNX,
            )
        return value


def read_config(path: Path, *, passive: bool = False) -> Config:
    """A JSON file of a checkpoint.

    Args:
        passive: code that the file names is that of something not made from it, such as a tokenizer's class.

    Raises:
        CheckpointError: it is missing, no JSON mapping, or asks for code of its own to be run.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many for a config")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"the checkpoint has no {path.name}",
            where=str(path.parent),
            fix="copy or download the whole folder",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read",
            where=str(path),
            got=str(error).split("\n")[0][:160],
            fix="copy or download the checkpoint again",
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path.name} is not a mapping",
            where=str(path),
            got=type(data).__name__,
            fix="copy or download the checkpoint again",
        )
    if data.get("auto_map") and not passive:
        raise CheckpointError(
            "this checkpoint asks for code of its own ('auto_map'), which is never run",
            where=str(path),
            fix=f"remove 'auto_map' where the tensors are those of a known family; else {USE_ONNX}",
        )
    return Config(data, str(path))
