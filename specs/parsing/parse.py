"""YAML text -> `Spec`: the first problem found, in words, with its file and line.

    text --parse--> data --apply variant--> data --validate, check--> Spec

`document.py` knows YAML, `schema.py` and `components/` know types, `wording.py` says what is wrong with them,
`consistency.py` knows what must hold between the parts; here are variants. No file is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from specs.components import COMPONENTS, Component
from specs.document import Document, name_type, parse_document
from specs.errors import SpecError, name_nearest
from specs.parsing.consistency import check_consistency
from specs.parsing.wording import ROOT_KEYS, word_errors
from specs.schema import Spec

#: What a variant may override beside components' sizes.
VARIANT_SECTIONS = ("dims", "calibration")
#: Words that mean something else where a component's name can stand: in `precision`, `variants`, or a bundle's folder.
_RESERVED_NAMES = {"default", *VARIANT_SECTIONS, "reports", "timing", "assets"}


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
            allowed=name_nearest(variant, variants) if variants else "no variant: this spec has none",
            fix="use one of these, or leave the variant out" if variants else "leave the variant out",
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
                        allowed="a variant overrides sizes: the graph keeps its outputs and layers' kinds",
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
