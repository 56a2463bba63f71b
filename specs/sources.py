"""Where a spec and the files that it names are: the zoo, checkpoints' folders, and paths.

A spec's paths are relative to its own folder; `zoo:` begins a path below the shipped specs. They become absolute when
a spec is loaded, and portable when it is written: what is below the zoo is kept, of any other path the file's name.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from specs.bundle import MANIFEST_NAME
from specs.errors import CalibrationError, MetagenError, SpecError, WeightsError, name_nearest
from specs.schema import Spec

#: The shipped specs.
ZOO = Path(__file__).with_name("zoo")
#: shipped spec -> what this project has proven of it.
PROOF = Path(__file__).with_name("proof.yaml")
ZOO_PREFIX = "zoo:"
#: One of these makes a folder a checkpoint: of transformers, of diffusers.
CHECKPOINT_FILES = ("config.json", "model_index.json")


def list_zoo() -> tuple[str, ...]:
    """Names of the shipped specs."""
    return tuple(sorted(path.stem for path in ZOO.glob("*.yaml")))


def find_spec(source: str) -> tuple[Path, str | None]:
    """The file that `source` means, and the variant after its colon."""
    stem, colon, suffix = source.rpartition(":")
    for name, variant in ((source, None), (stem, suffix)):
        if variant is not None and not colon:
            break
        if name in list_zoo():
            return ZOO / f"{name}.yaml", variant
        if name and os.path.isfile(name):  # noqa: PTH113 - False for a name too long to be one, where pathlib raises
            return Path(name), variant
    name = stem or source
    if os.path.isdir(name):  # noqa: PTH112
        raise make_folder_error(name)
    if "/" in name or name.endswith((".yaml", ".yml")):
        hub = re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) and not name.endswith((".yaml", ".yml"))
        raise SpecError(
            f"there is no file '{name[:200]}'",
            fix=f"a model of a hub is not fetched: download its folder first (hf download {name} --local-dir FOLDER)"
            if hub
            else "check the path; shipped specs: metagen-deploy specs",
        )
    raise SpecError(
        f"there is no spec called '{name[:64]}'",
        allowed=name_nearest(name, list_zoo()),
        fix="use one of these, or the path of a YAML file",
    )


def make_folder_error(source: str) -> SpecError:
    """For a folder that is no checkpoint."""
    if os.path.isfile(os.path.join(source, MANIFEST_NAME)):  # noqa: PTH113, PTH118 - as in `find_spec`
        return SpecError(
            "this is a bundle, not a spec", where=source, fix=f"metagen-deploy inspect {shlex.quote(source)}"
        )
    if os.path.isfile(os.path.join(source, "adapter_config.json")):  # noqa: PTH113, PTH118 - as in `find_spec`
        return SpecError(
            "this folder is an adapter (LoRA and the like) without the model that it changes",
            where=source,
            fix="merge it first: peft's model.merge_and_unload().save_pretrained(FOLDER), then give FOLDER",
        )
    return SpecError(
        "this folder is no checkpoint: it has neither config.json nor model_index.json",
        where=source,
        allowed="a checkpoint's folder, a shipped spec, a spec's YAML file, or an .onnx file",
        fix="correct the path, or write a spec whose `weights: {source: ...}` names the .safetensors",
    )


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder as Hugging Face libraries save models; what is in it is for the importers."""
    return any((path / name).is_file() for name in CHECKPOINT_FILES)


def resolve_source(source: str, folder: Path) -> Path:
    """The file that `source` means in a spec of `folder`; `zoo:` begins a path below the shipped specs.

    Raises:
        SpecError: a `zoo:` path that leaves the zoo.
    """
    if not source.startswith(ZOO_PREFIX):
        return (folder / source).resolve()
    path = (ZOO / source.removeprefix(ZOO_PREFIX)).resolve()
    if not path.is_relative_to(ZOO.resolve()):
        raise SpecError(f"'{source}' leaves the folder of the shipped specs", fix="give a path of your own")
    return path


def resolve_sources(spec: Spec, folder: Path, options: Collection[str] = ()) -> Spec:
    """Absolute paths of files that exist; those of `options` were given on the command line."""
    kinds: dict[str, type[MetagenError]] = {
        "weights": WeightsError,
        "calibration": CalibrationError,
        "evaluation": CalibrationError,
    }
    update: dict[str, Any] = {}
    for key, kind in kinds.items():
        part = getattr(spec, key)
        if part is None or part.source == "random":
            continue
        path = resolve_source(part.source, folder)
        if not path.is_file() and not (key == "weights" and is_checkpoint(path)):
            problem, fix = (
                f"the file that {key}.source names",
                f"correct {key}.source; it is relative to the spec's own folder",
            )
            if key in options:
                problem, fix = f"the file given with --{key}", "correct the path"
            raise kind(
                f"{problem} {'is a folder' if path.is_dir() else 'does not exist'}",
                where=str(path),
                got=None if part.source == str(path) else part.source,
                allowed="a folder with " + " or ".join(CHECKPOINT_FILES)
                if key == "weights" and path.is_dir()
                else None,
                fix=fix,
            )
        update[key] = part.model_copy(update={"source": str(path)})
    update["tokenizers"] = {
        name: part.model_copy(update={"source": str(_resolve_tokenizer(name, part.source, folder))})
        for name, part in spec.tokenizers.items()
    }
    return spec.model_copy(update=update)


def _resolve_tokenizer(name: str, source: str, folder: Path) -> Path:
    path = resolve_source(source, folder)
    if not path.is_file():
        raise SpecError(
            f"the file that tokenizers.{name}.source names {'is a folder' if path.is_dir() else 'does not exist'}",
            where=str(path),
            fix="give a tokenizer.json; it is relative to the spec's own folder",
        )
    return path


def name_tokenizer_asset(component: str) -> str:
    """Where a bundle keeps a component's tokenizer."""
    return f"assets/{component}.tokenizer.json"


def make_portable(source: str) -> str:
    """What a written spec says of an absolute path: `zoo:` and what is below it, or the file's name."""
    path = Path(source)
    if not path.is_absolute():
        return source
    zoo = ZOO.resolve()
    return f"{ZOO_PREFIX}{path.relative_to(zoo).as_posix()}" if path.is_relative_to(zoo) else path.name
