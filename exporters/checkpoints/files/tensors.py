"""The tensors of a checkpoint's folder, by name: headers only, until one is read as a view of the mapped file.

model.safetensors, or model.safetensors.index.json -> shards; the same under diffusers' names, and with a variant
(model.fp16.safetensors)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, final

from safetensors import SafetensorError, safe_open

from exporters.checkpoints.files.config import read_config
from specs.errors import CheckpointError, WeightsError, name_nearest

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


@dataclass(frozen=True, kw_only=True)
class Header:
    """Shape and type of a stored tensor; `dtype` is safetensors' name, e.g. BF16."""

    shape: tuple[int, ...]
    dtype: str
    path: Path


@final
class _Shard:
    """One file. Its header is read without torch; torch maps it when the first tensor is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def mapped(self) -> Any:
        return safe_open(self.path, framework="pt")

    def list_headers(self) -> dict[str, Header]:
        with safe_open(self.path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {
                name: Header(shape=tuple(part.get_shape()), dtype=part.get_dtype(), path=self.path)
                for name, part in parts.items()
            }


@final
class Tensors(Mapping[str, Header]):
    """Every tensor of a checkpoint. `read` maps; nothing is copied."""

    def __init__(self, headers: Mapping[str, Header], files: Mapping[Path, _Shard], names: Mapping[str, str]) -> None:
        self._headers, self._files, self._names = dict(headers), dict(files), dict(names)

    def __getitem__(self, name: str) -> Header:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def read(self, name: str) -> Tensor:
        """The tensor as a view of its mapped file."""
        path = self._headers[name].path
        tensor: Tensor = _guard(path, lambda: self._files[path].mapped.get_tensor(self._names[name]))
        return tensor

    def find_prefix(self, probe: str, prefixes: Iterable[str]) -> str:
        """Which of `prefixes` stands before `probe` here: libraries save a model alone, or inside a larger one.

        Raises:
            WeightsError: no prefix gives a tensor of this checkpoint.
        """
        tried = list(prefixes)
        for prefix in tried:
            if prefix + probe in self:
                return prefix
        raise WeightsError(
            f"the checkpoint has no tensor '{tried[0]}{probe}'",
            got=f"{len(self)} tensors; nearest to it: {name_nearest(tried[0] + probe, list(self)[:200])}",
            fix="use a checkpoint that holds the whole model that its config describes",
        )

    def join(self, prefix: str, other: Tensors) -> Tensors:
        """These, and the other's with `prefix` before their names: the parts of a pipeline."""
        headers = {prefix + name: header for name, header in other._headers.items()}
        names = {prefix + name: stored for name, stored in other._names.items()}
        return Tensors({**self._headers, **headers}, {**self._files, **other._files}, {**self._names, **names})


EMPTY = Tensors({}, {}, {})


def open_tensors(folder: Path) -> Tensors:
    """The headers of a folder's safetensors.

    Raises:
        WeightsError: none, only pickled ones, a truncated shard, an index that names a missing one.
    """
    for stem in _STEMS:
        if file := _find_file(folder, stem):
            return _open_shards(file) if file.suffix == ".json" else _open_files([file])
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", *_PICKLES))
    if "adapter_model.safetensors" in found:
        raise WeightsError(
            "the checkpoint is an adapter (LoRA and the like) without the model that it changes",
            where=str(folder),
            got=", ".join(found)[:200],
            fix="merge it first: peft's model.merge_and_unload().save_pretrained(FOLDER), then export FOLDER",
        )
    if any(name.endswith(".safetensors") for name in found):
        raise WeightsError(
            "the checkpoint's weights have names that no library gives them",
            where=str(folder),
            got=", ".join(found)[:200],
            allowed=", ".join(f"{stem}.safetensors" for stem in _STEMS) + ", or shards with their index",
            fix="rename the file, or save the model again",
        )
    if found:
        raise WeightsError(
            "the checkpoint's weights are pickles, which can run code, and are not read",
            where=str(folder),
            got=", ".join(found)[:200],
            allowed="model.safetensors",
            fix="convert once: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')",
        )
    raise WeightsError(
        "the checkpoint has no weights",
        where=str(folder),
        allowed="model.safetensors, or model.safetensors.index.json and its shards",
        fix="copy or download it again: the folder holds the config only",
    )


def _find_file(folder: Path, stem: str) -> Path | None:
    """The one file, or the index of shards, as `save_pretrained` names them: without a variant before with one.

    Raises:
        WeightsError: two variants (`model.fp16.safetensors`, `model.bf16.safetensors`) and no plain file.
    """
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
        if (folder / name).is_file():
            return folder / name
    indices = sorted(folder.glob(f"{stem}.safetensors.index.*.json"))
    found = indices or sorted(path for path in folder.glob(f"{stem}.*.safetensors") if "-of-" not in path.name)
    if len(found) > 1:
        raise WeightsError(
            "the checkpoint has its weights in several variants",
            where=str(folder),
            got=", ".join(path.name for path in found)[:200],
            fix=f"keep one of them, or name it {stem}.safetensors",
        )
    return found[0] if found else None


def _open_shards(index: Path) -> Tensors:
    weight_map = read_config(index).take("weight_map", dict)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or len(PurePosixPath(shard).parts) != 1 or shard in ("", ".", ".."):
            raise WeightsError(
                "the index names a shard outside the checkpoint's folder",
                where=str(index),
                got=f"{name}: {shard!r}"[:160],
                fix="copy or download the checkpoint again",
            )
    shards = sorted({index.parent / shard for shard in weight_map.values()})
    for shard in shards:
        if not shard.is_file():
            raise WeightsError(
                f"the index names the shard '{shard.name}', which is missing",
                where=str(index),
                got=", ".join(sorted(path.name for path in index.parent.glob("*.safetensors"))) or "no shards",
                fix="copy or download the missing file",
            )
    tensors = _open_files(shards)
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise WeightsError(
                f"the index says that '{name}' is in '{shard}', and it is not",
                where=str(index),
                fix="copy or download the checkpoint again: index and shards are of different models",
            )
    return tensors


def _open_files(paths: Iterable[Path]) -> Tensors:
    headers: dict[str, Header] = {}
    shards = {path: _Shard(path) for path in paths}
    for path, shard in shards.items():
        for name, header in _guard(path, shard.list_headers).items():
            if name in headers:
                raise WeightsError(
                    f"the tensor '{name}' is in two shards",
                    where=str(path),
                    got=headers[name].path.name,
                    fix="remove the file that does not belong to the checkpoint",
                )
            headers[name] = header
    return Tensors(headers, shards, {name: name for name in headers})


def _guard(path: Path, step: Callable[[], Result]) -> Result:
    try:
        return step()
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            "the weights file is truncated, or is not safetensors",
            where=str(path),
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="copy or download it again",
        ) from None


def check_is_folder(folder: Path) -> None:
    """CheckpointError unless `folder` is one."""
    if not folder.is_dir():
        raise CheckpointError("the checkpoint's folder does not exist", where=str(folder), fix="correct the path")
