"""A checkpoint's folder -> its spec, and the source of its parameters. Nothing is loaded, nothing executed,
and `read_spec` needs no torch.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import USE_ONNX, Config, read_config
from exporters.checkpoints.files.tensors import Tensors, check_is_folder
from specs.document import dump_document
from specs.errors import CheckpointError, SpecError, WeightsError, name_nearest
from specs.parsing.parse import parse_spec
from specs.schema import Spec

if TYPE_CHECKING:
    from exporters.checkpoints.files.source import CheckpointSource

MODEL_INDEX = "model_index.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is understood: what it is, and where its parameters come from.

    Args:
        unused: the checkpoint's tensor -> why no parameter is made of it.
    """

    family: str
    spec: Spec
    source: CheckpointSource
    used: int
    unused: Mapping[str, str]


def read_spec(path: Path) -> Spec:
    """The spec of a checkpoint, from its configs alone.

    Raises:
        CheckpointError: unknown family, custom code, an option that is not implemented.
    """
    check_is_folder(path)
    folder = Folder(path)
    importer = find_importer(folder)
    return _parse(importer, folder)


def open_checkpoint(path: Path, spec: Spec | None = None) -> Checkpoint:
    """Headers only.

    Args:
        spec: what shall be built, when it is not simply what the config says: dims, precision and targets are free,
            components must be the checkpoint's.

    Raises:
        CheckpointError: as `read_spec`; or `spec` has other components than the checkpoint.
        WeightsError: missing, damaged or left-over tensors.
    """
    check_is_folder(path)
    folder = Folder(path)
    importer = find_importer(folder)
    own = _parse(importer, folder)
    if spec is None:
        spec = own
    else:
        _check_components(path, spec, own)
    from exporters.checkpoints.files.source import CheckpointSource  # torch, which `read_spec` does without

    tensors = importer.open_tensors(folder)
    source = CheckpointSource(path, tensors, importer.map_tensors(spec, folder))
    unused = _explain_unused(path, tensors, source, importer.explain_unused(spec, folder))
    return Checkpoint(family=importer.title, spec=spec, source=source, used=len(tensors) - len(unused), unused=unused)


def write_report(bundle: Path, checkpoint: Checkpoint) -> None:
    """`reports/checkpoint.json`: the family, how many tensors were used, and why others were not."""
    path = bundle / "reports" / "checkpoint.json"
    path.parent.mkdir(exist_ok=True)
    report = {"family": checkpoint.family, "used": checkpoint.used, "unused": dict(checkpoint.unused)}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def find_importer(folder: Folder) -> Importer:
    """The importer of a checkpoint's family.

    Raises:
        CheckpointError: the config names no family, or one that is not known; lists those that are.
    """
    from exporters.checkpoints import IMPORTERS

    table = {name: importer for importer in IMPORTERS for name in importer.model_types}
    index = folder.path / MODEL_INDEX
    config = read_config(index) if index.is_file() else folder.config
    name = _name_family(config)
    if name not in table:
        raise CheckpointError(
            f"there is no importer for '{name}' checkpoints" if name else "the config does not say what model it is of",
            where=config.where,
            allowed=(f"nearest: {name_nearest(name, table)}; " if name else "")
            + "families: "
            + ", ".join(importer.title for importer in IMPORTERS),
            fix=USE_ONNX,
        )
    return table[name]


def _name_family(config: Config) -> str:
    return config.take_first(("_class_name", "model_type"), str, "")


def _parse(importer: Importer, folder: Folder) -> Spec:
    """Through the YAML that a bundle will carry: the written spec alone rebuilds the model."""
    data = {
        "name": _name_spec(folder.path),
        "description": f"{importer.title}, from the checkpoint {folder.path.resolve().name}.",
        **importer.make_spec(folder),
        "weights": {"source": str(folder.path.resolve())},
    }
    try:
        return parse_spec(dump_document(data), source=f"the spec made of {folder.path}")
    except SpecError as error:
        raise CheckpointError(
            f"the checkpoint's config contradicts itself: {error.problem}",
            where=str(folder.path),
            got=error.got,
            allowed=error.allowed,
            fix="restore config.json: it belongs to the checkpoint",
        ) from None


def _name_classes(path: Path) -> str:
    """What the config says it is of: a model saved with the head of another task says so."""
    config = Folder(path).find_config("config.json")
    names = ", ".join(map(str, config.take("architectures", list, [])))
    return f"; the config says it is a {names}" if names else ""


def _name_spec(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().name).lstrip("_.-")[:64]
    return name or "checkpoint"


def _check_components(path: Path, spec: Spec, own: Spec) -> None:
    for name in {**spec.components, **own.components}:
        here, there = spec.components.get(name), own.components.get(name)
        if here == there:
            continue
        if here is None or there is None:
            differing = "is missing in the spec" if here is None else "is not in the checkpoint"
            got, allowed = ", ".join(spec.components), ", ".join(own.components)
        else:
            keys = [k for k, v in there.model_dump().items() if here.model_dump().get(k, v) != v] or ["kind"]
            differing = f"differs in {', '.join(keys)}"
            got = ", ".join(f"{key} {getattr(here, key, None)}" for key in keys)
            allowed = ", ".join(f"{key} {getattr(there, key, None)}" for key in keys)
        raise CheckpointError(
            f"component '{name}' {differing}",
            where=f"{spec.name}, whose weights are {path}",
            got=got,
            allowed=f"{allowed}, as the checkpoint's config says",
            fix=f"copy the components that `metagen-deploy show {shlex.quote(str(path))}` prints",
        )


def _explain_unused(
    path: Path, tensors: Tensors, source: CheckpointSource, reasons: Mapping[str, str]
) -> dict[str, str]:
    unused: dict[str, str] = {}
    for name in sorted(set(tensors) - source.used):
        reason = next((reason for pattern, reason in reasons.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if reason is None:
            raise WeightsError(
                f"the checkpoint's tensor '{name}' has no place in the model that its config describes",
                where=str(tensors[name].path),
                got=f"{len(tensors)} tensors, of which {len(source.used)} have one{_name_classes(path)}",
                fix="use a checkpoint whose config and tensors belong together, saved without heads for other tasks",
            )
        unused[name] = reason
    return unused
