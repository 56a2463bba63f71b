"""The source of a checkpoint's parameters: recipes, and the mapped tensors that they ask for. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from exporters.checkpoints.files.recipes import Recipe
from exporters.checkpoints.files.tensors import Tensors
from specs.errors import WeightsError, name_nearest
from specs.parameters.source import PARAMETER_DTYPES, ParameterSource, StoredTensor


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
