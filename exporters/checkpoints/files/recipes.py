"""How each parameter of our modules is made of a checkpoint's tensors, and the source that hands them over.

    `<component>.<parameter>`  <--Recipe--  one tensor as it is (stays mapped), or several and a function of them

A recipe's function runs on meta tensors first: so every shape is checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from exporters.checkpoints.files.tensors import Tensors
from specs.errors import WeightsError, name_nearest
from specs.parameters.source import PARAMETER_DTYPES, ParameterSource, StoredTensor

Make = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One parameter: the checkpoint's tensors it is made of, and how; None where there is one, taken as it is."""

    sources: tuple[str, ...]
    make: Make | None = None


def take(name: str) -> Recipe:
    """The tensor as it is."""
    return Recipe(sources=(name,))


def transpose(name: str) -> Recipe:
    """A matrix that the checkpoint stores the other way round (GPT-2's Conv1D)."""
    return Recipe(sources=(name,), make=lambda tensor: tensor.t())


def stack(*names: str) -> Recipe:
    """Several tensors under one another along the first axis: query, key and value of one Linear."""
    return Recipe(sources=names, make=lambda *tensors: torch.cat(tensors))


def reshape(name: str, *shape: int) -> Recipe:
    """The same values in another shape: a 1 by 1 convolution as a Linear, a position table without its batch axis."""
    return Recipe(sources=(name,), make=lambda tensor: tensor.reshape(shape))


def compute(make: Make, *names: str) -> Recipe:
    """Anything else; `make` gets the tensors in the order of `names`, must work on meta tensors, and keeps the type."""
    return Recipe(sources=names, make=make)


def take_module(ours: str, theirs: str, *leaves: str) -> dict[str, Recipe]:
    """Parameters that both sides call alike: `take_module("a.norm", "b.ln", "weight", "bias")`."""
    return {f"{ours}.{leaf}": take(f"{theirs}.{leaf}") for leaf in leaves}


def take_linear(ours: str, theirs: str, *, bias: bool = True) -> dict[str, Recipe]:
    """Weight, and bias where there is one."""
    return take_module(ours, theirs, "weight", *(("bias",) if bias else ()))


def stack_linear(ours: str, theirs: tuple[str, ...], *, bias: bool = True) -> dict[str, Recipe]:
    """Several Linears as one."""
    return {
        f"{ours}.{leaf}": stack(*(f"{one}.{leaf}" for one in theirs))
        for leaf in ("weight", *(("bias",) if bias else ()))
    }


@final
class CheckpointSource(ParameterSource):
    """The parameters of our modules, out of a checkpoint's mapped tensors."""

    def __init__(self, folder: Path, tensors: Tensors, recipes: Mapping[str, Recipe]) -> None:
        self._folder, self._tensors, self._recipes = folder, tensors, dict(recipes)
        for name, recipe in recipes.items():
            for source in recipe.sources:
                if source not in tensors:
                    raise WeightsError(
                        f"the checkpoint lacks the tensor '{source}'",
                        where=str(folder),
                        got=f"{len(tensors)} tensors; nearest to it: {name_nearest(source, list(tensors))}",
                        allowed=f"what config.json describes; it becomes '{name}'",
                        fix="use a checkpoint whose config and tensors belong together",
                    )

    @property
    def where(self) -> str:
        return str(self._folder)

    @property
    def used(self) -> set[str]:
        """Names of the checkpoint's tensors that some parameter is made of."""
        return {source for recipe in self._recipes.values() for source in recipe.sources}

    def list_tensors(self) -> Mapping[str, StoredTensor]:
        return {name: self._describe(name, recipe) for name, recipe in self._recipes.items()}

    def _describe(self, name: str, recipe: Recipe) -> StoredTensor:
        headers = [self._tensors[source] for source in recipe.sources]
        origin = f"tensor '{' + '.join(recipe.sources)}' of {headers[0].path}"
        kinds = [header.dtype for header in headers]
        unknown = next((kind for kind in kinds if kind not in PARAMETER_DTYPES), None)
        if recipe.make is None or unknown:
            kind = unknown or kinds[0]
            return StoredTensor(
                shape=headers[0].shape,
                dtype=PARAMETER_DTYPES.get(kind, kind),
                mapped=recipe.make is None,
                origin=origin,
            )
        empty = [torch.empty(h.shape, dtype=PARAMETER_DTYPES[h.dtype], device="meta") for h in headers]
        try:
            made = recipe.make(*empty)
        except (RuntimeError, IndexError, ValueError) as error:
            raise WeightsError(
                f"'{name}' cannot be made of tensors of these shapes",
                where=origin,
                got=", ".join(str(list(header.shape)) for header in headers),
                allowed=str(error).splitlines()[0][:160],
                fix="use a checkpoint whose config and tensors belong together",
            ) from None
        dtype = made.dtype if made.dtype in PARAMETER_DTYPES.values() else empty[0].dtype
        return StoredTensor(shape=tuple(made.shape), dtype=dtype, mapped=False, origin=origin)

    def read(self, name: str) -> Tensor:
        (source,) = self._recipes[name].sources
        return self._tensors.read(source)

    def fill(self, name: str, out: Tensor) -> None:
        recipe = self._recipes[name]
        assert recipe.make is not None, "a mapped tensor is read"
        out.copy_(recipe.make(*(self._tensors.read(source) for source in recipe.sources)))
