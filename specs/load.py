"""YAML -> `Spec`: the first problem found, in words, with its file and line.

    source --locate--> text --parse--> data --apply variant--> data --validate, check--> Spec --resolve--> Spec

`document.py` knows YAML, `schema.py` and `components.py` know types, `wording.py` says what is wrong with them,
`consistency.py` knows what must hold between the parts; here are variants, and where files are.

A spec's paths are relative to its own folder; `zoo:` begins a path below the shipped specs. `load_spec` makes paths
absolute. `dump_spec` never writes an absolute one: it keeps what is below the zoo, and of any other absolute path the
file's name, so that a bundle says nothing of the machine it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from specs.bundle import MANIFEST_NAME
from specs.components import COMPONENTS, Component
from specs.consistency import check_consistency
from specs.document import Document, dump_document, name_type, parse_document, read_text
from specs.errors import CalibrationError, MetagenError, SpecError, WeightsError, name_nearest
from specs.json_schema import make_json_schema
from specs.schema import Dim, Spec
from specs.wording import ROOT_KEYS, word_errors

__all__ = ["dump_spec", "list_zoo", "load_spec", "make_json_schema", "override_spec", "parse_spec", "resolve_source"]

ZOO = Path(__file__).with_name("zoo")
#: shipped spec -> what this project has proven of it.
PROOF = Path(__file__).with_name("proof.yaml")
_ZOO_PREFIX = "zoo:"

#: One of these makes a folder a checkpoint: of transformers, of diffusers.
CHECKPOINT_FILES = ("config.json", "model_index.json")

#: What a variant may override beside components' sizes.
VARIANT_SECTIONS = ("dims", "calibration")

#: Words that mean something else where a component's name can stand: in `precision`, `variants`, or a bundle's folder.
_RESERVED_NAMES = {"default", *VARIANT_SECTIONS, "reports", "timing", "assets"}


def list_zoo() -> tuple[str, ...]:
    """Names of the shipped specs."""
    return tuple(sorted(path.stem for path in ZOO.glob("*.yaml")))


def load_spec(source: str | Path, *, variant: str | None = None) -> Spec:
    """Load a shipped spec or a YAML file; `image_vit_base:tiny` and `my.yaml:tiny` pick a variant.

    Raises:
        SpecError, TargetError: the text is malformed, names something unknown, or contradicts itself.
        WeightsError, CalibrationError: a file that the spec names is missing or of another kind.
    """
    path, suffix = _locate(str(source))
    if suffix and variant and suffix != variant:
        raise SpecError(f"two variants are asked for: '{suffix}' and '{variant}'", fix="give one of them")
    display = f"{_ZOO_PREFIX}{path.name}" if path.parent == ZOO else str(path)
    return _resolve_sources(
        parse_spec(read_text(path), source=display, variant=variant or suffix), path.resolve().parent
    )


def _locate(source: str) -> tuple[Path, str | None]:
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


def parse_spec(text: str, *, source: str, variant: str | None = None) -> Spec:
    """Parse YAML text; `source` names it in errors. Paths stay as they are written, and no file is looked at.

    Every variant is validated, also those not asked for.

    Raises:
        SpecError, TargetError, WeightsError: as `load_spec`.
    """
    document = parse_document(text, source=source)
    data = dict(document.data)
    variants = _take_variants(document, data)
    if variant is not None and variant not in variants:
        raise SpecError(
            f"'{data.get('name', source)}' has no variant '{variant}'",
            where=document.locate(("variants",)),
            allowed=name_nearest(variant, variants),
            fix="use one of these, or leave the variant out",
        )
    specs: dict[str | None, Spec] = {None: _validate(document, data)}
    for name, overrides in variants.items():
        specs[name] = _validate(*_apply_variant(document, data, name, overrides))
    return specs[variant]


def _take_variants(document: Document, data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take `variants` out of `data` and check its shape: a mapping of mappings of mappings."""
    variants = data.pop("variants", {})
    if variants and "variant" in data:
        raise SpecError(
            "'variant' is what a normalised spec records, and this one has 'variants'",
            where=document.locate(("variant",)),
            fix=f"remove the key; pick a variant with {data.get('name', 'NAME')}:{data['variant']}",
        )

    def require_mapping(value: object, path: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            raise SpecError(
                f"{'.'.join(path)} cannot be {name_type(value)}",
                where=document.locate(path),
                allowed="a mapping",
                fix="write variants as NAME: {COMPONENT: {KEY: VALUE}}",
            )

    require_mapping(variants, ("variants",))
    for name, overrides in variants.items():
        require_mapping(overrides, ("variants", name))
        for section, values in overrides.items():
            require_mapping(values, ("variants", name, section))
    return dict(variants)


def _apply_variant(
    document: Document, data: Mapping[str, Any], name: str, overrides: Mapping[str, dict[str, Any]]
) -> tuple[Document, dict[str, Any]]:
    """`data` with the overrides merged in, and a document whose lines point at them."""
    merged = {**data, "variant": name, "components": dict(data["components"])}
    lines = dict(document.lines)
    for section, values in overrides.items():
        at = ("variants", name, section)
        if section in VARIANT_SECTIONS:
            target: tuple[str, ...] = (section,)
            merged[section] = _merge(merged.get(section, {}), values)
        elif section in merged["components"]:
            target = ("components", section)
            component = merged["components"][section]
            for key in values:
                if key in COMPONENTS[component["kind"]].STRUCTURE:
                    raise SpecError(
                        f"variant '{name}' changes '{key}' of {section}, which is structure",
                        where=document.locate((*at, key)),
                        allowed="a variant overrides sizes: the graph keeps its inputs, outputs and layers' kinds",
                        fix="write a spec of its own for another structure",
                    )
            merged["components"][section] = {**component, **values}
        else:
            raise SpecError(
                f"variant '{name}' names '{section}', which is no component",
                where=document.locate(at),
                allowed=name_nearest(section, [*merged["components"], *VARIANT_SECTIONS]),
                fix="use one of these",
            )
        lines |= {(*target, *path[3:]): line for path, line in document.lines.items() if path[:3] == at}
    return replace(document, lines=lines), merged


def _merge(base: object, values: Mapping[str, Any]) -> object:
    """`base` with `values` over it, one level of nested mappings deep; anything else is left for validation."""
    if not isinstance(base, dict):
        return base
    return {
        **base,
        **{
            k: {**base[k], **v} if isinstance(v, dict) and isinstance(base.get(k), dict) else v
            for k, v in values.items()
        },
    }


def _validate(document: Document, data: Mapping[str, Any]) -> Spec:
    """Types first, then what must hold between the parts."""
    for key in data:
        if key not in ROOT_KEYS:
            raise SpecError(
                f"unknown key '{key}'",
                where=document.locate((key,)),
                allowed=name_nearest(key, ROOT_KEYS),
                fix="rename the key to one of these, or remove it",
            )
    typed = dict(data)
    if "components" in data:
        typed["components"] = _parse_components(document, data["components"])
        _check_precision_names(document, data.get("precision"), typed["components"])
    try:
        spec = Spec.model_validate(typed, strict=True)
    except ValidationError as error:
        raise word_errors(error, document, data, ()) from None
    return check_consistency(document, spec)


def _parse_components(document: Document, value: object) -> dict[str, Component]:
    if not isinstance(value, dict):
        raise SpecError(
            f"components cannot be {name_type(value)}",
            where=document.locate(("components",)),
            allowed="a mapping of names to components",
            fix="write components: {NAME: {kind: KIND, ...}}",
        )
    return {name: _parse_component(document, name, entry) for name, entry in value.items()}


def _check_precision_names(document: Document, precision: object, components: Mapping[str, Component]) -> None:
    for name in precision if isinstance(precision, dict) else ():
        if name != "default" and name not in components:
            raise SpecError(
                f"precision names '{name}', which is no component",
                where=document.locate(("precision", name)),
                allowed=name_nearest(name, ["default", *components]),
                fix="use one of these",
            )


def _parse_component(document: Document, name: str, value: object) -> Component:
    at = ("components", name)
    if not isinstance(value, dict):
        raise SpecError(
            f"components.{name} cannot be {name_type(value)}",
            where=document.locate(at),
            allowed="a mapping with a kind",
            fix=f"write {name}: {{kind: KIND, ...}}",
        )
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in COMPONENTS:
        raise SpecError(
            f"component '{name}' has no kind" if kind is None else f"component '{name}' has the unknown kind '{kind}'",
            where=document.locate((*at, "kind")),
            allowed=name_nearest(str(kind), COMPONENTS),
            fix="set kind to one of these",
        )
    if name in _RESERVED_NAMES or "." in name:
        raise SpecError(
            f"a component cannot be called '{name}'",
            where=document.locate(at),
            allowed=f"a name without a dot, other than {', '.join(sorted(_RESERVED_NAMES))}",
            fix="rename the component",
        )
    try:
        return COMPONENTS[kind].model_validate(value, strict=True)
    except ValidationError as error:
        raise word_errors(error, document, value, at) from None


def resolve_source(source: str, folder: Path) -> Path:
    """The file that `source` means in a spec of `folder`; `zoo:` begins a path below the shipped specs.

    Raises:
        SpecError: a `zoo:` path that leaves the zoo.
    """
    if not source.startswith(_ZOO_PREFIX):
        return (folder / source).resolve()
    path = (ZOO / source.removeprefix(_ZOO_PREFIX)).resolve()
    if not path.is_relative_to(ZOO.resolve()):
        raise SpecError(f"'{source}' leaves the folder of the shipped specs", fix="give a path of your own")
    return path


def _resolve_sources(spec: Spec, folder: Path, options: Collection[str] = ()) -> Spec:
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


def make_folder_error(source: str) -> SpecError:
    """For a folder that is no checkpoint."""
    if os.path.isfile(os.path.join(source, MANIFEST_NAME)):  # noqa: PTH113, PTH118 - as in `_locate`
        return SpecError("this is a bundle, not a spec", where=source, fix=f"metagen-deploy inspect {source}")
    if os.path.isfile(os.path.join(source, "adapter_config.json")):  # noqa: PTH113, PTH118 - as in `_locate`
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


def dump_spec(spec: Spec) -> str:
    """Normalised YAML: every value written out, no variants, no absolute path. Loads back as an equal spec."""
    data = spec.model_dump(exclude_none=True)
    for key in ("weights", "calibration", "evaluation"):
        if key in data:
            data[key]["source"] = _make_portable(data[key]["source"])
    if Path(spec.weights.source).is_absolute() and not spec.weights.source.endswith(".safetensors"):
        data["weights"]["source"] = f"./{data['weights']['source']}"  # a checkpoint's folder
    for name, part in data["tokenizers"].items():
        if Path(part["source"]).is_absolute():
            part["source"] = name_tokenizer_asset(name)
    return dump_document(data)


def name_tokenizer_asset(component: str) -> str:
    """Where a bundle keeps a component's tokenizer."""
    return f"assets/{component}.tokenizer.json"


def _make_portable(source: str) -> str:
    path = Path(source)
    if not path.is_absolute():
        return source
    zoo = ZOO.resolve()
    return f"{_ZOO_PREFIX}{path.relative_to(zoo).as_posix()}" if path.is_relative_to(zoo) else path.name


def override_spec(
    spec: Spec,
    *,
    targets: tuple[str, ...] = (),
    weights: Path | None = None,
    calibration: Path | None = None,
    dims: Mapping[str, Dim] | None = None,
) -> Spec:
    """`spec` with the command line's choices in place of its own.

    Raises:
        SpecError, TargetError: a dim or a target that there is not, or dims that contradict each other.
        WeightsError, CalibrationError: a file that does not exist, or is of another kind.
    """
    update: dict[str, Any] = {}
    if targets:
        update["targets"] = targets
    if weights is not None:
        update["weights"] = spec.weights.model_copy(update={"source": str(weights.absolute())})
    if calibration is not None:
        update["calibration"] = spec.calibration.model_copy(update={"source": str(calibration.absolute())})
    for name in dims or {}:
        if name not in spec.dims:
            raise SpecError(
                f"the spec has no dim '{name}'", allowed=name_nearest(name, spec.dims), fix="name one of these in --dim"
            )
    update["dims"] = {**spec.dims, **(dims or {})}
    spec = check_consistency(Document("the command line", {}, {(): 0}), spec.model_copy(update=update))
    given = {"weights": weights, "calibration": calibration}
    return _resolve_sources(spec, Path.cwd(), [key for key, path in given.items() if path is not None])
