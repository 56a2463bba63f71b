"""A component's configuration from keywords, and seeded weights for its module."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import nn

from specs.errors import SpecError, name_nearest
from specs.parameters.fill import fill_parameters
from specs.schema import WeightsSpec

Config = TypeVar("Config", bound=BaseModel)
Module = TypeVar("Module", bound=nn.Module)


def make_config(kind: type[Config], values: dict[str, Any]) -> Config:
    """A component's configuration, with an error as a spec's would be.

    Raises:
        SpecError: an unknown keyword, or sizes that contradict each other.
    """
    for key in values:
        if key not in kind.model_fields:
            raise SpecError(
                f"unknown option '{key}'", allowed=name_nearest(key, kind.model_fields), fix="use one of these"
            )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or None
        raise SpecError(first["msg"].removeprefix("Value error, "), where=where, fix="change the value") from None


def fill_seeded(module: Module, seed: int) -> Module:
    """Seeded weights, as a spec's `weights: {source: random}` gives them."""
    fill_parameters({"module": module}, WeightsSpec(seed=seed))
    return module
