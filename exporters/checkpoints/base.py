"""What an importer of one family of checkpoints is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

from exporters.checkpoints.files.config import Config, read_config
from exporters.checkpoints.files.recipes import Recipe
from exporters.checkpoints.files.tensors import EMPTY, Tensors, open_tensors
from specs.schema import Spec


@final
@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder, or one of a pipeline's subfolders."""

    path: Path

    @cached_property
    def config(self) -> Config:
        """`config.json`."""
        return read_config(self.path / "config.json")

    @cached_property
    def tensors(self) -> Tensors:
        """The headers of the folder's own tensors."""
        return open_tensors(self.path)

    def open(self, name: str) -> Folder:
        """A subfolder: a part of a diffusers pipeline."""
        return Folder(self.path / name)

    def find_config(self, name: str) -> Config:
        """Another JSON file of the folder (generation_config.json, preprocessor_config.json); empty when absent."""
        path = self.path / name
        return read_config(path) if path.is_file() else Config({}, str(path))

    def join_tensors(self, *parts: str) -> Tensors:
        """The tensors of several subfolders, each name with `<part>/` before it."""
        joined = EMPTY
        for part in parts:
            joined = joined.join(f"{part}/", self.open(part).tensors)
        return joined


class Importer(ABC):
    """One family of checkpoints: config -> spec, and tensors -> parameters. One family a file."""

    #: What it is called in errors and in docs/checkpoints.md.
    title: ClassVar[str]
    #: `model_type` of config.json, or `_class_name` of a diffusers config or pipeline.
    model_types: ClassVar[tuple[str, ...]]

    @abstractmethod
    def make_spec(self, folder: Folder) -> dict[str, Any]:
        """The spec as its YAML would say it, without `name`, `weights` and `description`. Reads configs only.

        Every option of the config that changes numbers is taken over, or refused by `Config.require`.
        """

    @abstractmethod
    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        """`<component>.<parameter>` of our modules -> how it is made of the checkpoint's tensors."""

    def open_tensors(self, folder: Folder) -> Tensors:
        """All tensors of the checkpoint; several subfolders for a pipeline."""
        return folder.tensors

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        """Patterns (fnmatch) of tensors that no parameter is made of -> the reason, for the report.

        A tensor that is neither used nor explained is an error: config and tensors would contradict each other.
        """
        return {}
